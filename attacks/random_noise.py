"""Random points of the threat model: the weakest attack, and a floor for all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.pgd import Worst
from bench.core import registry
from bench.core.contracts import Attack, Batch


@registry.attack("random-noise")
@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """The worst of some points drawn uniformly from the ball."""

    norms = ("Linf", "L2", "L1")

    samples: int = 10

    @torch.no_grad()
    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        worst = Worst(batch.x, batch.y)
        for _ in range(self.samples):
            x_adv = self.threat.random_start(batch.x, generator)
            worst.see(x_adv, model(x_adv))
        return worst.point
