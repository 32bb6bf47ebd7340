"""Random points of the threat model: the weakest attack, a baseline for all others."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import WorstPoint
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.threat import ThreatModel


@registry.attack("random-noise")
@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """The point of smallest margin among `samples` points drawn uniformly from the ball."""

    norms = ("Linf", "L2", "L1")

    samples: int = 10  # random points for each example

    @torch.no_grad()
    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        worst = WorstPoint(batch.x, batch.y)
        for _ in range(self.samples):
            x_adv = threat.random_start(batch.x, generator)
            worst.update(x_adv, model(x_adv))
        return worst.point
