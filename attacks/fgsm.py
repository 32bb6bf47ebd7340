"""The fast gradient sign method (Goodfellow et al., 2015)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel


@registry.attack("fgsm")
@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of size eps along the gradient's sign (Linf) or along the gradient (L2). Goodfellow et al. (2015)."""

    alpha: Length = OfEps(1.0)  # step size
    random_start: bool = False  # start at a uniform point of the ball, not at the image

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        start = threat.random_start(batch.x, generator) if self.random_start else batch.x
        alpha = in_units(self.alpha, threat.eps)
        return ascend(model, batch.x, batch.y, threat=threat, steps=1, alpha=alpha, start=start)
