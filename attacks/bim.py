"""The basic iterative method (Kurakin et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.pgd import ascend
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.specs import Length, OfEps, in_units


@registry.attack("bim")
@dataclass(frozen=True, kw_only=True)
class BIM(Attack):
    """Steps of eps / steps from the image itself, each projected; the last iterate. Kurakin et al. (2017)."""

    steps: int = 10
    alpha: Length | None = None  # eps / steps

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        alpha = in_units(self.alpha or OfEps(1 / self.steps), self.threat.eps)
        x_adv, _ = ascend(model, batch.x, batch.y, threat=self.threat, steps=self.steps, alpha=alpha, start=batch.x)
        return x_adv
