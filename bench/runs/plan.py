"""Resolves and checks every name, default and override of a request, before anything is computed or written."""

import copy
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.core import files, registry
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.config import CORRUPTIONS, RunConfig, Suite, as_json, content_hash, get_suite, make_config, suites
from bench.core.contracts import Certifier, Defense
from bench.core.devices import choose_device, choose_threads, is_small
from bench.core.errors import UserError
from bench.core.model_specs import parse_model
from bench.core.opened_files import record_opened_files
from bench.core.source_code import combined
from bench.core.spec_text import files_of_code
from bench.core.threat import ThreatModel, parse_norm
from bench.datasets.arrays import Arrays
from bench.datasets.corruption_sources import CorruptionSource, corruption_sources, describe, is_published
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.evaluate.bracket import BracketPlan, plan_bracket
from bench.evaluate.certified import check_certifier, make_certifiers
from bench.runs.compatibility import (
    check_checkpoint,
    check_distinct_names,
    check_model,
    check_rebuilt,
    check_training,
)
from bench.runs.hub import repository_name
from bench.runs.request import Request
from bench.runs.sources import SourceRoots, Sources
from bench.training.checkpoints import BuildSpec, check_no_key, read_spec
from bench.training.foreign_checkpoints import load_foreign
from bench.training.rebuild import load_weights, make_defense, new_model

DEFAULT_ATTACKS = ("pgd-10", "pgd-50", "autoattack")
OF_TRAINING = ("dataset", "data_hash", "model", "defense", "norm", "eps", "box", "training")  # fields of RunConfig


@dataclass(frozen=True)
class Plan:
    """A resolved and checked request."""

    request: Request
    config: RunConfig
    spec: BuildSpec  # how to build the model
    arrays: Arrays
    ball: ThreatModel | None  # None for a suite of corruptions, which has no norm
    attacks: dict[str, PlannedAttack]
    certifiers: dict[str, Certifier]
    defense: Defense[Any] | None  # trains (`bench run`) or only builds the model (`bench eval` of our own weights)
    device: torch.device
    threads: int = 1
    stated_threads: int | None = None  # `threads`, if the results depend on it and not every machine chooses it
    bracket: BracketPlan | None = None
    loaded: nn.Module | None = None  # the model with the weights of --checkpoint
    sources: Sources = field(default_factory=Sources)
    corruptions: Sequence[CorruptionSource] = ()

    @property
    def threat(self) -> ThreatModel:
        """The threat model; UserError if it has no norm."""
        if self.ball is None:
            raise UserError(f"suite '{self.request.suite}' has no norm and no eps; name another suite, or --dataset")
        return self.ball

    @property
    def name(self) -> str:
        """The defense's name in the record; the file's or repository's name if the weights were trained elsewhere."""
        if self.spec.defense:
            return self.spec.defense
        if self.request.origin is not None:
            return repository_name(self.request.origin)
        return "" if self.request.checkpoint is None else self.request.checkpoint.stem

    @property
    def label(self) -> str:
        board = self.config.suite or Path(self.config.dataset).stem
        return re.sub(r"[^\w.+-]+", "_", f"{board}-{self.name}")

    def folder(self, seed: int) -> Path:
        """The folder of the run: record, table, witnesses and weights."""
        return self.request.out / f"{self.label}-{self.config.content_hash}" / str(seed)

    @property
    def training_identity(self) -> dict[str, Any]:
        """Everything except the seed that determines the weights. Its hash names the folder of the training."""
        config = self.config.as_json()
        threads = {} if self.stated_threads is None else {"threads": self.stated_threads}
        of_training = {key: config[key] for key in OF_TRAINING if key in config}
        return of_training | threads | {"source": combined(self.sources.training)}

    def command_line(self, seed: int) -> str:
        """A shell command that reproduces the run."""
        return replace(self.request, threads=self.stated_threads).command_line(seed)

    def training_folder(self, seed: int) -> Path:
        """The folder of the training, which all evaluations of its weights share."""
        return self.request.out / "trainings" / f"{self.label}-{content_hash(self.training_identity)}" / str(seed)

    def new_model(self, seed: int) -> nn.Module:
        """The model as the defense builds it, with weights initialised from `seed`."""
        return new_model(self.spec, seed)

    def test_split(self, n: int | None = None) -> Split:
        """The first n test examples (default: those of the config)."""
        return Split.test(self.arrays, self.device, n or self.config.n_examples)


def make_plan(request: Request) -> Plan:
    """Resolve names, defaults and overrides; UserError if one of them is invalid or they do not fit together.

    A checkpoint may name code files, such as its model's; they are imported only if the request names them too.
    """
    if request.checkpoint is None:
        return _make_plan(request)
    specs = [request.model, request.dataset, *(request.attacks or ()), *request.certifiers]
    named = files_of_code(spec for spec in specs if spec is not None)
    with registry.only_named_code([*request.plugins, *request.trusted, *named]):
        return _make_plan(request)


def _make_plan(request: Request) -> Plan:
    code = registry.load_plugins(request.plugins)
    saved_spec = None if request.checkpoint is None else read_spec(request.checkpoint)
    suite = _suite_of(request, saved_spec)
    arrays = load_arrays(request.dataset or suite.dataset, request.data_dir)
    if saved_spec is not None and request.checkpoint is not None:
        check_no_key(request.checkpoint, request.state_dict)
        check_checkpoint(saved_spec, request.checkpoint, request.model, arrays)
    ball = None if suite.norm == CORRUPTIONS else _threat_of(request, suite, arrays)
    names = suite.corruptions if request.corruptions is None else request.corruptions
    if corruptions := corruption_sources(names, arrays, request.data_dir):
        print(describe(names, corruptions), file=sys.stderr)
    read_by_methods: set[Path] = set()
    with record_opened_files(read_by_methods):
        attacks = {} if ball is None else _attacks_of(request, suite, ball)
        certifiers = make_certifiers(request.certifiers)
    for planned in attacks.values():
        planned.check_fits(arrays.shape, arrays.classes)
    check_distinct_names(attacks, certifiers)
    spec = saved_spec or _build_spec_of(request, suite, arrays)
    specs = (spec.model, *attacks, *certifiers)
    code += [files.sha256(Path(text.partition(":")[0])) for text in specs if ".py:" in text]
    defense = make_defense(spec)
    if request.defense is not None and defense is not None and ball is not None:
        check_training(defense, arrays, ball)
    n = len(arrays.y_test)
    if request.n_examples is not None and not 1 <= request.n_examples <= n:
        raise UserError(f"n_examples is {request.n_examples}; {arrays.name} has 1 to {n} test examples")
    norm, eps = (CORRUPTIONS, 0.0) if ball is None else (ball.norm, float(ball.eps))
    in_suite = (arrays.name, norm, eps) == (suite.dataset, suite.norm, suite.eps)
    in_suite &= ball is not None or is_published(corruptions)
    config = RunConfig(
        suite=suite.name if suite.name and in_suite and request.box else None,
        dataset=arrays.name, data_hash=arrays.hash, model=spec.model, defense=request.defense,
        checkpoint=files.sha256(request.checkpoint) if request.checkpoint else None, state_dict=request.state_dict,
        norm=norm, eps=eps, attacks=tuple(attacks), n_examples=request.n_examples or n,
        eval_batch=request.eval_batch or suite.eval_batch, training=spec.training if request.defense else {},
        code=tuple(code),
        certifiers=tuple(certifiers), corruptions=tuple(source.text for source in corruptions),
        budget=request.budget, time_limit=request.time_limit, box=request.box,
    )  # fmt: skip
    device = choose_device(request.device)
    plan = Plan(request, config, spec, arrays, ball, attacks, certifiers, defense, device, corruptions=corruptions)
    return _with_model(plan, saved_spec, read_by_methods)


def _with_model(plan: Plan, saved_spec: BuildSpec | None, read_by_methods: set[Path]) -> Plan:
    """Complete the plan with the parts that depend on its model: loaded weights, threads, bracket and sources."""
    request, shape = plan.request, plan.arrays.shape
    read_by_model: set[Path] = set()
    with record_opened_files(read_by_model):
        model = plan.new_model(0)
        check_model(model, plan.arrays, plan.spec.model)
    if request.defense is not None:
        check_rebuilt(model, plan.new_model(1), plan.arrays, plan.spec.model)
    initial = copy.deepcopy(model.state_dict())
    threads = request.threads or choose_threads(model, shape)
    chosen_everywhere = plan.device.type != "cpu" or (threads == 1 and is_small(model, shape))
    if saved_spec is not None and request.checkpoint is not None:
        load_weights(model, request.checkpoint)
    elif request.checkpoint is not None:
        for ours, theirs in load_foreign(model, request.checkpoint, request.state_dict).items():
            print(f"{request.checkpoint.name}: {theirs} -> {ours}", file=sys.stderr)
    for certifier in plan.certifiers.values():
        check_certifier(certifier, model, shape, plan.threat)
    bracket = None if request.budget is None else plan_bracket(
        model, shape, plan.arrays.classes, plan.threat, budget=request.budget, time_limit=request.time_limit,
        known=[*plan.attacks.values(), *plan.certifiers.values()],
    )  # fmt: skip
    plan = replace(
        plan, threads=threads, stated_threads=None if chosen_everywhere else threads, bracket=bracket,
        loaded=model if request.checkpoint else None,
    )  # fmt: skip
    ingredients = SourceRoots(
        spec=plan.spec, trains=plan.config.defense is not None, dataset=plan.config.dataset, plugins=request.plugins,
        defense=plan.defense, attacks=plan.attacks, certifiers=list(plan.certifiers.values()),
        stages=bracket.stages if bracket is not None else (),
        initial=initial, read_by_model=read_by_model, read_by_methods=read_by_methods,
    )  # fmt: skip
    return replace(plan, sources=ingredients.sources())


def _suite_of(request: Request, saved_spec: BuildSpec | None) -> Suite:
    """Return the suite of --suite; else that of the data set; else an unnamed one from the other options."""
    if request.suite is not None:
        suite = get_suite(request.suite)
        if not request.box:
            raise UserError(f"suite '{suite.name}' keeps points in [0, 1]; leave out --suite or --box none")
        if suite.norm == CORRUPTIONS:
            _check_corruptions(request, suite)
        given = {"dataset": request.dataset, "norm": request.norm, "eps": request.eps[0] if request.eps else None}
        for rule, value in given.items():
            if value not in (None, own := getattr(suite, rule)):
                raise UserError(f"suite '{suite.name}' has {rule} {own}, not {value}; leave out --suite or --{rule}")
        return suite
    if request.dataset is None:
        return get_suite("digits")
    head = request.dataset.partition(":")[0]
    if head in suites():
        return get_suite(head)
    if head.endswith(".npz") and head != request.dataset:
        raise UserError(f"data set '{request.dataset}': a file has no options; select the examples in {head} itself")
    if not head.endswith((".npz", ".py")):
        registry.dataset.get(head)  # UserError with the nearest name
    if request.eps is None or (request.model is None and saved_spec is None):
        raise UserError(f"data set '{request.dataset}' has no suite; give --eps and --model too")
    return Suite(
        name="", summary="", dataset=request.dataset, model=request.model or "", norm=request.norm or "Linf",
        eps=request.eps[0], attacks=DEFAULT_ATTACKS, training={"crop": 0, "flip": False},
    )  # fmt: skip


def _check_corruptions(request: Request, suite: Suite) -> None:
    """Check that a suite of corruptions only evaluates weights, without attacks."""
    if not (suite.corruptions if request.corruptions is None else request.corruptions):
        raise UserError(
            f"suite '{suite.name}' measures nothing but corruptions, and none is given; if it has none of its own, it "
            "is for reported accuracies"
        )
    if request.defense is not None:
        raise UserError(
            f"suite '{suite.name}' has no norm to train for; train for another (bench run --suite {suite.dataset} "
            f"--corruptions benchmark), or evaluate weights: bench eval --suite {suite.name} --checkpoint FILE"
        )
    attacked = bool(request.attacks) or bool(request.certifiers) or request.budget is not None
    if attacked or request.norm is not None or request.eps is not None:
        raise UserError(
            f"suite '{suite.name}' has no norm; leave out --norm, --eps, --attacks, --certifiers and --bracket"
        )


def _threat_of(request: Request, suite: Suite, arrays: Arrays) -> ThreatModel:
    norm = request.norm or suite.norm
    if norm != suite.norm and request.eps is None:
        raise UserError(f"suite '{suite.name}' has an eps for {suite.norm} only; give --eps for {norm}")
    eps = suite.eps if request.eps is None else request.eps[0]
    threat = ThreatModel(parse_norm(norm), eps, (0.0, 1.0) if request.box else None)
    threat.check_eps(arrays.shape)
    return threat


def _attacks_of(request: Request, suite: Suite, threat: ThreatModel) -> dict[str, PlannedAttack]:
    """The requested attacks; those without their own norm or eps are repeated at each further --eps."""
    default = suite.attacks if request.budget is None else ()
    names = list(default if request.attacks is None else request.attacks)
    repeated = [name for name in names if not re.search(r":(norm|eps)=", name)]
    names += [f"{name}:eps={eps!r}" for eps in (request.eps or ())[1:] for name in repeated]
    return make_attacks(names, threat)


def _build_spec_of(request: Request, suite: Suite, arrays: Arrays) -> BuildSpec:
    """The model of --model or the suite, and the training settings if a defense is given."""
    special = dict(suite.defenses.get(request.defense or "", {}))
    suites_model = special.pop("model", suite.model)
    model = request.model or suites_model
    training: dict[str, Any] = {}
    if request.defense is not None:
        config_class = registry.defense.get(request.defense).config_class
        training = as_json(make_config(config_class, request.defense, suite.training, special, request.overrides))
    return BuildSpec(
        model=parse_model(model)[0].text, shape=arrays.shape, classes=arrays.classes,
        defense=request.defense, training=training,
    )  # fmt: skip
