"""What a run will be: a request with every name, default and override resolved and checked before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.core import records, registry, seeds
from bench.core.config import RunConfig, Suite, config_as_json, get_suite, make_config, suites
from bench.core.contracts import Attack, Defense
from bench.core.errors import UserError
from bench.core.specs import parse_spec
from bench.core.threads import choose_threads
from bench.core.threat import NORMS, ThreatModel
from bench.datasets.arrays import Arrays, read_npz
from bench.evaluate.attacked import make_attacks
from bench.training.checkpoints import WEIGHTS, read_spec

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
    eps: float | None = None
    attacks: Sequence[str] | None = None
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
    arrays: Arrays
    threat: ThreatModel
    attacks: dict[str, Attack]
    defense: Defense[Any] | None
    device: torch.device
    threads: int

    @property
    def name(self) -> str:
        return self.config.defense or _stem(self.request.checkpoint)

    def folder(self, seed: int) -> Path:
        board = self.config.suite or Path(self.config.dataset).stem
        return self.request.out / f"{board}-{self.name}-{self.config.content_hash}" / str(seed)

    def new_model(self, seed: int) -> nn.Module:
        """The architecture with fresh weights, as the defense wants it built."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seeds.derive(seed, "initialisation"))
            model = build_model(self.config.model, self.arrays.shape, self.arrays.classes)
            return self.defense.build(model) if self.defense is not None else model


def plan(request: Request) -> Plan:
    """Resolve names, defaults and overrides; UserError for whatever is wrong."""
    plugins = tuple(registry.load_plugin(path) for path in request.plugins)
    spec = _own_spec(request.checkpoint)
    suite = _suite_of(request)
    arrays = load_arrays(request.dataset or suite.dataset, request.data_dir)
    norm = request.norm or suite.norm
    if norm not in NORMS:
        raise UserError(f"norm '{norm}' is not one of {', '.join(NORMS)}")
    eps = checked_eps(suite.eps if request.eps is None else request.eps, norm, arrays.shape)
    threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
    names = suite.attacks if request.attacks is None else request.attacks
    attacks = make_attacks(names, threat)
    defense, training = _defense_of(request, suite, spec)
    if defense is not None and norm not in defense.norms:
        raise UserError(f"defense '{request.defense}' has no {norm} form; its norms are {', '.join(defense.norms)}")
    model = request.model or (spec["model"] if spec else suite.model)
    device = choose_device(request.device)
    n = len(arrays.y_test)
    if request.n_examples is not None and not 1 <= request.n_examples <= n:
        raise UserError(f"--n-examples {request.n_examples}: {arrays.name} has 1 to {n} test examples")
    config = RunConfig(
        suite=suite.name or None, dataset=arrays.name, data_hash=arrays.hash,
        model=parse_spec(model, registry.model).text, defense=request.defense,
        checkpoint=records.sha256(request.checkpoint) if request.checkpoint else None,
        norm=norm, eps=eps, attacks=tuple(attacks), n_examples=request.n_examples or n, eval_batch=suite.eval_batch,
        training=training, plugins=plugins,
    )  # fmt: skip
    unset = Plan(request, config, arrays, threat, attacks, defense, device, threads=1)
    probe = unset.new_model(0)
    _check_fits(probe, arrays, config.model)
    return replace(unset, threads=request.threads or choose_threads(probe, arrays.shape))


def load_arrays(dataset: str, data_dir: Path | None) -> Arrays:
    """A data set by name, by spec, or by the path of an .npz."""
    if dataset.endswith(".npz"):
        return read_npz(Path(dataset))
    arrays = parse_spec(dataset, registry.dataset).make(data_dir)
    assert isinstance(arrays, Arrays)
    return replace(arrays, name=parse_spec(dataset, registry.dataset).text)


def build_model(text: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """An architecture by spec, for images of `shape` (C,H,W)."""
    model = parse_spec(text, registry.model).make(shape, classes)
    if not isinstance(model, nn.Module):
        raise UserError(f"model '{text}' returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def checked_eps(eps: float, norm: str, shape: tuple[int, int, int]) -> float:
    """eps, where it can be meant in the scale of images in [0, 1]."""
    largest = {"Linf": 1.0, "L2": float(np.sqrt(np.prod(shape))), "L1": float(np.prod(shape))}[norm]
    if not 0 < eps <= largest:
        hint = f"; write {eps:g}/255 for {eps:g} grey levels" if eps > largest and norm == "Linf" else ""
        raise UserError(f"eps {eps:g}: images are in [0, 1], so a {norm} eps lies in (0, {largest:g}]{hint}")
    return float(eps)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': torch sees no GPU on this machine; use --device cpu")
    return torch.device(name)


def _suite_of(request: Request) -> Suite:
    """The suite that was named; else that of the data set; else one made of what was given."""
    if request.suite is not None:
        suite = get_suite(request.suite)
        if request.dataset not in (None, suite.dataset):
            raise UserError(
                f"suite '{suite.name}' is on {suite.dataset}, not on {request.dataset}; leave out --suite or --dataset"
            )
        return suite
    if request.dataset is None:
        return get_suite("digits")
    if request.dataset in suites():
        return get_suite(request.dataset)
    if request.eps is None or (request.model is None and _own_spec(request.checkpoint) is None):
        raise UserError(f"data set '{request.dataset}' has no suite of its own; give --eps and --model too")
    return Suite(
        name="", summary="", dataset=request.dataset, model=request.model or "", norm=request.norm or "Linf",
        eps=request.eps, attacks=DEFAULT_ATTACKS, training={"crop": 0, "flip": False},
    )  # fmt: skip


def _own_spec(checkpoint: Path | None) -> dict[str, Any] | None:
    if checkpoint is not None and not checkpoint.is_file():
        raise UserError(f"checkpoint {checkpoint} does not exist; give a .safetensors, .pt or .ckpt file of weights")
    return read_spec(checkpoint) if checkpoint is not None else None


def _defense_of(
    request: Request, suite: Suite, spec: dict[str, Any] | None
) -> tuple[Defense[Any] | None, dict[str, Any]]:
    """The defense of `bench run` with its whole config; nothing for `bench eval`."""
    if request.defense is None:
        if request.overrides:
            raise UserError("--set changes a defense's training; weights that are there already have none")
        return None, {}
    target = registry.defense.get(request.defense)
    layers = [suite.training, suite.defenses.get(request.defense, {}), request.overrides]
    config = make_config(target.config_class, request.defense, *layers)
    return target(config), config_as_json(config)


def defense_of_spec(spec: dict[str, Any]) -> Defense[Any]:
    target = registry.defense.get(spec["defense"])
    defense = target(make_config(target.config_class, spec["defense"], spec["training"]))
    assert isinstance(defense, Defense)
    return defense


def build_spec(plan: Plan) -> dict[str, Any]:
    """What `bench eval` needs to build this model again."""
    config = plan.config
    return {
        "model": config.model,
        "shape": list(plan.arrays.shape),
        "classes": plan.arrays.classes,
        "defense": config.defense,
        "training": dict(config.training),
    }


def _check_fits(model: nn.Module, arrays: Arrays, text: str) -> None:
    """UserError where a model does not take the data set's images or has another number of classes."""
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *arrays.shape))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"model '{text}' does not take the images of {arrays.name}, {arrays.shape} ({registry.one_line(error)})"
        ) from error
    if logits.shape != (2, arrays.classes):
        raise UserError(f"model '{text}' returns {tuple(logits.shape)} for two images of {arrays.classes} classes")


def _stem(checkpoint: Path | None) -> str:
    assert checkpoint is not None
    return checkpoint.resolve().parent.parent.name if checkpoint.name == WEIGHTS else checkpoint.stem
