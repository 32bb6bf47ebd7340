"""Attacks from outside this project: a function of a plugin, an attack of another library."""

import inspect
import random
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.failures import failures_of
from bench.core.specs import check_counts_and_lengths
from bench.core.threat import NORMS, ThreatModel

ROUNDING = 1e-4  # of eps: points this far outside, from float32 arithmetic, are projected without a warning


@dataclass(frozen=True, kw_only=True)
class ForeignAttack(Attack):
    """An attack in code that does not follow our conventions.

    It gets copies of the images, draws from the global generators (seeded by ours inside the call, then restored), and
    prints to standard error. If it fails, a UserError says where. Points outside the threat model, or not
    finite, are replaced with a warning.
    """

    @abstractmethod
    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        """x_adv (B,C,H,W)."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        with seeded_global_generators(generator), redirect_stdout(sys.stderr), failures_of(f"attack {self.name}"):
            x_adv = self.run(model, batch.x.clone(), batch.y.clone(), threat, generator=generator)
        if not isinstance(x_adv, Tensor) or x_adv.shape != batch.x.shape:
            what = f"of shape {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise UserError(f"attack {self.name} must return images of shape {tuple(batch.x.shape)}, not {what}")
        return self._repair(x_adv.detach().to(batch.x), batch.x, threat)

    def _repair(self, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        finite = x_adv.isfinite().flatten(1).all(dim=1)
        x_adv = torch.where(finite.reshape(-1, *[1] * (x.dim() - 1)), x_adv, x)
        if not finite.all():
            not_finite = f"{int((~finite).sum())} of {len(x)} points were not finite"
            warnings.warn(f"{not_finite}; the images replace them", stacklevel=2)
        outside = threat.distance(x_adv, x) > threat.eps_like(x).flatten() * (1 + ROUNDING)
        if threat.box is not None:
            low, high = threat.box
            outside |= ((x_adv < low - ROUNDING) | (x_adv > high + ROUNDING)).flatten(1).any(dim=1)
        if outside.any() and not self.minimum_norm:
            too_far = f"{int(outside.sum())} of {len(x)} points were outside the threat model"
            warnings.warn(f"{too_far} and were projected", stacklevel=2)
        return x_adv


@dataclass(frozen=True, kw_only=True)
class CallableAttack(ForeignAttack):
    """A function as an attack: function(model, x, y, *, its own options) -> x_adv.

    x (B,C,H,W) float32 in [0,1], y (B,) int64; the model is in eval mode and returns logits. If the function has
    keyword-only parameters `threat` or `generator` without defaults, it gets the threat model, or the generator from
    which it should draw all random numbers.
    """

    norms = NORMS

    function: Callable[..., Tensor]
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts_and_lengths(SimpleNamespace(**self.options))
        try:
            requested = self._requested("threat", "generator")
            inspect.signature(self.function).bind("model", "x", "y", **requested, **self.options)
        except TypeError as error:
            raise UserError(
                f"attack function {self.name} cannot be called ({error}); it takes (model, x, y), then by keyword its "
                "options, each with a default, and threat and generator if it asks for them"
            ) from error

    @property
    def name(self) -> str:
        return self.function.__name__

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        return self.function(model, x, y, **self._requested(threat, generator), **self.options)

    def _requested(self, threat: Any, generator: Any) -> dict[str, Any]:
        parameters = inspect.signature(self.function).parameters
        return {name: value for name, value in [("threat", threat), ("generator", generator)] if name in parameters}


@contextmanager
def seeded_global_generators(generator: torch.Generator) -> Iterator[None]:
    """Seed the global generators of torch, numpy and `random` from ours in the block, and restore them afterwards."""
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([generator.device] if generator.device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
