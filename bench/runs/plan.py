"""What a run will be: a request with every name, default and override resolved and checked before it starts."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.core import files, registry, seeds
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.config import RunConfig, Suite, as_json, get_suite, make_config, suites
from bench.core.contracts import Certifier, Defense
from bench.core.errors import UserError
from bench.core.specs import parse_spec
from bench.core.devices import choose_device, choose_threads
from bench.core.threat import ThreatModel, checked_norm
from bench.datasets.arrays import Arrays
from bench.datasets.load import load_arrays
from bench.models.build import build_model
from bench.evaluate.bracket import BracketPlan, plan_bracket
from bench.evaluate.certified import check_certifier, make_certifiers
from bench.runs.compatibility import check_model, check_names, check_own, check_training
from bench.training.checkpoints import BuildSpec, read_spec, read_state
from bench.training.foreign_checkpoints import load_foreign

DEFAULT_ATTACKS = ("pgd-10", "pgd-50", "autoattack")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; what is None comes from the suite."""

    defense: str | None = None
    checkpoint: Path | None = None
    suite: str | None = None
    dataset: str | None = None
    model: str | None = None
    norm: str | None = None
    eps: Sequence[float] | None = None  # the first is the threat model's; each attack also runs under the others
    attacks: Sequence[str] | None = None  # where there is a bracket, none are the default
    certifiers: Sequence[str] = ()
    bracket: float | None = None  # seconds to spend on it, where one is wanted
    n_examples: int | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    threads: int | None = None
    plugins: Sequence[Path] = ()
    data_dir: Path | None = None
    out: Path = Path("runs")


@dataclass(frozen=True)
class Plan:
    """A request with everything in it resolved and checked, before anything is written."""

    request: Request
    config: RunConfig
    spec: BuildSpec  # how the model is built
    arrays: Arrays
    threat: ThreatModel
    attacks: dict[str, PlannedAttack]
    certifiers: dict[str, Certifier]
    defense: Defense[Any] | None  # that trains (`bench run`) or only builds (`bench eval` of our own weights)
    device: torch.device
    threads: int = 1
    bracket: BracketPlan | None = None
    loaded: nn.Module | None = None  # with the weights of --checkpoint

    @property
    def name(self) -> str:
        """What the record calls the defense: its name, or the file's where it was trained elsewhere."""
        checkpoint = self.request.checkpoint
        return self.spec.defense or (checkpoint.stem if checkpoint is not None else "")

    def folder(self, seed: int) -> Path:
        board = self.config.suite or Path(self.config.dataset).stem
        plain = re.sub(r"[^\w.+-]+", "_", f"{board}-{self.name}")
        return self.request.out / f"{plain}-{self.config.content_hash}" / str(seed)

    def new_model(self, seed: int) -> nn.Module:
        """The architecture with fresh weights, as the defense wants it built."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seeds.derive(seed, "initialisation"))
            model = build_model(self.spec.model, self.arrays.shape, self.arrays.classes)
            return self.defense.build(model) if self.defense is not None else model


def plan(request: Request) -> Plan:
    """Resolve names, defaults and overrides; UserError for whatever is wrong."""
    code = [registry.load_plugin(path) for path in request.plugins]
    own = None if request.checkpoint is None else read_spec(request.checkpoint)
    suite = _suite_of(request, own)
    arrays = load_arrays(request.dataset or suite.dataset, request.data_dir)
    if own is not None:
        check_own(own, request.checkpoint, request.model, arrays)
    threat = _threat_of(request, suite, arrays)
    attacks = _attacks_of(request, suite, threat)
    for planned in attacks.values():
        planned.threat.check_eps(arrays.shape)
        planned.attack.check_fits(planned.threat, arrays.shape, arrays.classes)
    certifiers = make_certifiers(request.certifiers)
    check_names(attacks, certifiers)
    spec = own or _spec_of(request, suite, arrays)
    own_code = (spec.model, *attacks, *certifiers)
    code += [files.sha256(Path(text.partition(":")[0])) for text in own_code if ".py:" in text]
    defense = None if spec.defense is None else _make_defense(spec.defense, spec.training)
    if request.defense is not None and defense is not None:
        check_training(defense, arrays, threat)
    n = len(arrays.y_test)
    if request.n_examples is not None and request.n_examples > n:
        raise UserError(f"--n-examples {request.n_examples}: {arrays.name} has 1 to {n} test examples")
    assert isinstance(threat.eps, float)
    in_suite = suite.name and (threat.norm, threat.eps) == (suite.norm, suite.eps)
    config = RunConfig(
        suite=suite.name if in_suite else None, dataset=arrays.name, data_hash=arrays.hash, model=spec.model,
        defense=request.defense, checkpoint=files.sha256(request.checkpoint) if request.checkpoint else None,
        norm=threat.norm, eps=threat.eps, attacks=tuple(attacks), n_examples=request.n_examples or n,
        eval_batch=suite.eval_batch, training=spec.training if request.defense else {}, code=tuple(code),
        certifiers=tuple(certifiers), bracket=request.bracket,
    )  # fmt: skip
    unset = Plan(request, config, spec, arrays, threat, attacks, certifiers, defense, choose_device(request.device))
    model = unset.new_model(0)
    check_model(model, arrays, spec.model)
    threads = request.threads or choose_threads(model, arrays.shape)
    if request.checkpoint is not None:
        _load(model, request.checkpoint, own)
    for certifier in certifiers.values():
        check_certifier(certifier, model, arrays.shape, threat)
    bracket = None if request.bracket is None else plan_bracket(
        model, arrays.shape, arrays.classes, threat, budget=request.bracket,
        known=[*attacks.values(), *certifiers.values()],
    )  # fmt: skip
    loaded = model if request.checkpoint is not None else None
    return replace(unset, threads=threads, bracket=bracket, loaded=loaded)


def _suite_of(request: Request, own: BuildSpec | None) -> Suite:
    """The suite that was named; else that of the data set; else one made of what was given."""
    if request.suite is not None:
        suite = get_suite(request.suite)
        given = {"dataset": request.dataset, "norm": request.norm, "eps": request.eps[0] if request.eps else None}
        for rule, value in given.items():
            if value not in (None, getattr(suite, rule)):
                raise UserError(
                    f"suite '{suite.name}' has {rule} {getattr(suite, rule)}, not {value}; "
                    f"leave out --suite or --{rule}"
                )
        return suite
    if request.dataset is None:
        return get_suite("digits")
    head = request.dataset.partition(":")[0]
    if head in suites():
        return get_suite(head)
    if not request.dataset.endswith(".npz"):
        registry.dataset.get(head)  # UserError with the nearest name
    elif not Path(request.dataset).is_file():
        raise UserError(f"data set {request.dataset} does not exist; give the path of an .npz, or a name")
    if request.eps is None or (request.model is None and own is None):
        raise UserError(f"data set '{request.dataset}' has no suite of its own; give --eps and --model too")
    return Suite(
        name="", summary="", dataset=request.dataset, model=request.model or "", norm=request.norm or "Linf",
        eps=request.eps[0], attacks=DEFAULT_ATTACKS, training={"crop": 0, "flip": False},
    )  # fmt: skip


def _threat_of(request: Request, suite: Suite, arrays: Arrays) -> ThreatModel:
    norm = request.norm or suite.norm
    if norm != suite.norm and request.eps is None:
        raise UserError(f"suite '{suite.name}' has an eps for {suite.norm} only; give --eps for {norm}")
    threat = ThreatModel(checked_norm(norm), suite.eps if request.eps is None else request.eps[0])
    threat.check_eps(arrays.shape)
    return threat


def _attacks_of(request: Request, suite: Suite, threat: ThreatModel) -> dict[str, PlannedAttack]:
    """The attacks that were asked for, those without a threat model of their own under each further --eps too."""
    default = suite.attacks if request.bracket is None else ()
    names = list(default if request.attacks is None else request.attacks)
    plain = [name for name in names if not re.search(r":(norm|eps)=", name)]
    further = [f"{name}:eps={eps!r}" for eps in (request.eps or ())[1:] for name in plain]
    return make_attacks(names + further, threat)


def _spec_of(request: Request, suite: Suite, arrays: Arrays) -> BuildSpec:
    """How to build the model that a suite, or --model, asks for, and to train it where a defense is given."""
    special = dict(suite.defenses.get(request.defense or "", {}))
    suites_model = special.pop("model", suite.model)
    model = request.model or suites_model
    training: dict[str, Any] = {}
    if request.defense is not None:
        config_class = registry.defense.get(request.defense).config_class
        training = as_json(make_config(config_class, request.defense, suite.training, special, request.overrides))
    return BuildSpec(
        model=parse_spec(model, registry.model).text, shape=arrays.shape, classes=arrays.classes,
        defense=request.defense, training=training,
    )  # fmt: skip


def _make_defense(name: str, training: Mapping[str, Any]) -> Defense[Any]:
    target = registry.defense.get(name)
    return target(make_config(target.config_class, name, training))


def _load(model: nn.Module, path: Path, own: BuildSpec | None) -> None:
    """Weights into a model: our own by name, another project's as load_foreign can; says which names it changed."""
    if own is None:
        for ours, theirs in load_foreign(model, path).items():
            print(f"{path.name}: {theirs} -> {ours}", file=sys.stderr)
        return
    try:
        model.load_state_dict(read_state(path), strict=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise UserError(f"checkpoint {path} does not fit its own header ({detail}); it was changed") from error
