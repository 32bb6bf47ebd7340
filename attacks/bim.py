"""The basic iterative method (Kurakin et al., 2017)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.losses import cross_entropy
from attacks.pgd import ascend
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel


@registry.attack("bim")
@dataclass(frozen=True, kw_only=True)
class BIM(Attack):
    """Projected steps of size eps / steps from the image itself; returns the last iterate. Kurakin et al. (2017)."""

    steps: int = 10  # gradient steps
    alpha: Length | None = None  # eps / steps

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the steps maximize."""
        return cross_entropy(logits, y)

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x, alpha = batch.x, in_units(self.alpha or OfEps(1 / self.steps), threat.eps)
        return ascend(model, x, batch.y, threat=threat, steps=self.steps, alpha=alpha, start=x, loss=self.loss)[0]
