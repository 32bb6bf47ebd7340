"""Projected gradient descent (Madry et al., 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import Step, ascend
from attacks.losses import Loss
from attacks.sequential_attack import SequentialAttack
from attacks.step_sizes import check_decay, decaying_steps
from bench.core import registry
from bench.core.contracts import Batch
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel


@registry.attack("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(SequentialAttack):
    """Projected gradient descent from random starts. Returns the first misclassified point, else the last one.

    Madry et al. (2018). A restart attacks only the examples that no earlier one has broken. L1 is not supported,
    because steepest steps need the special treatment of `apgd-ce` there.
    """

    alpha: Length = OfEps(0.25)  # step size
    random_start: bool = True  # start at a uniform point of the ball, not at the image
    step: Step = "auto"  # sign, L2-normalised or raw gradient; auto: by the norm
    decay: float = 1.0  # factor of the step size
    decay_every: int = 10  # steps between two decays
    stop_when_misclassified: bool = True  # an example stops at its first misclassified point; false: it takes all steps

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay, self.decay_every)

    def run(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, loss: Loss, generator: torch.Generator
    ) -> Tensor:
        x_adv = threat.random_start(batch.x, generator) if self.random_start else batch.x
        for steps, alpha in decaying_steps(self.steps, in_units(self.alpha, threat.eps), self.decay, self.decay_every):
            x_adv = ascend(  # stop_when_misclassified: a broken example costs one pass per call and no more
                model, batch.x, batch.y, threat=threat, steps=steps, alpha=alpha, loss=loss, start=x_adv,
                step=self.step, stop_when_misclassified=self.stop_when_misclassified,
            )  # fmt: skip
        return x_adv
