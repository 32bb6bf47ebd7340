"""Models from their build spec: with fresh weights, or with those of a file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.core import registry, seeds
from bench.core.config import make_config
from bench.core.contracts import Defense
from bench.core.errors import UserError
from bench.models.build import build_model
from bench.training.architecture import build_network
from bench.training.checkpoints import BuildSpec, read_state
from bench.training.packed import load_packed
from bench.training.packed_format import SUFFIX


def make_defense(spec: BuildSpec) -> Defense[Any] | None:
    """The defense of a build spec with its config; None if it has no defense."""
    if spec.defense is None:
        return None
    target = registry.defense.get(spec.defense)
    defense: Defense[Any] = target(make_config(target.config_class, spec.defense, spec.training))
    return defense


def new_model(spec: BuildSpec, seed: int = 0) -> nn.Module:
    """The architecture as the defense builds it, on the CPU, with the initial weights of this seed."""
    defense = make_defense(spec)
    with torch.random.fork_rng([]):
        torch.manual_seed(seeds.derive(seed, "initialisation"))
        model = build_model(spec.model, spec.shape, spec.classes)
        return model if defense is None else build_network(defense, model, spec.classes)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load our own weights into the model of their build spec; UserError if they do not fit it."""
    if path.suffix == SUFFIX:
        return load_packed(model, path)
    try:
        model.load_state_dict(read_state(path), strict=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise UserError(f"checkpoint {path} does not fit its own header ({detail}); it was changed") from error
