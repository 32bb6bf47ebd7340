"""The basic iterative method (Kurakin et al., 2017)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.losses import cross_entropy
from attacks.step_sizes import check_decay, decaying_steps
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel


@registry.attack("bim")
@dataclass(frozen=True, kw_only=True)
class BIM(Attack):
    """Projected steps of size eps / steps from the image itself; returns the last iterate. Kurakin et al. (2017)."""

    steps: int = 10  # gradient steps
    alpha: Length | None = None  # step size; none: eps / steps
    decay: float = 1.0  # factor of the step size
    decay_every: int = 10  # steps between two decays

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay, self.decay_every)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss that the steps maximize."""
        return cross_entropy(logits, y)

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x, y, first = batch.x, batch.y, in_units(self.alpha or OfEps(1 / self.steps), threat.eps)
        x_adv = x
        for steps, alpha in decaying_steps(self.steps, first, self.decay, self.decay_every):
            x_adv = ascend(model, x, y, threat=threat, steps=steps, alpha=alpha, start=x_adv, loss=self.loss)
        return x_adv
