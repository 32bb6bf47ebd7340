"""Attacks on the reflected loss: FGSM, BIM and PGD that maximize the likelihood of an incorrect class.

"Robustness Guarantees for Adversarially Trained Neural Networks" (anonymous, under review): with two classes
l_-(z) = -log(1 + e^z) of the margin z (section 2); with more, the log-likelihood of the most likely incorrect class,
chosen anew at each step (section 4.3, greedy). With two classes its gradient is a positive multiple of that of the
cross entropy, so the attacks differ only if steps are raw.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import Step, ascend
from attacks.bim import BIM
from attacks.losses import reflected
from attacks.step_sizes import check_decay, decaying_steps
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.specs import Length, in_units
from bench.core.threat import ThreatModel


@registry.attack("r-fgsm")
@dataclass(frozen=True, kw_only=True)
class RFGSM(Attack):
    """FGSM on the reflected loss: one step of size eps, along the gradient's sign (Linf) or the gradient (L2)."""

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x, y = batch.x, batch.y
        return ascend(model, x, y, threat=threat, steps=1, alpha=threat.eps, start=x, loss=reflected)


@registry.attack("r-bim")
@dataclass(frozen=True, kw_only=True)
class RBIM(BIM):
    """BIM on the reflected loss: steps of size eps / steps from the image itself; returns the last iterate."""

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return reflected(logits, y)


@registry.attack("r-pgd")
@dataclass(frozen=True, kw_only=True)
class RPGD(Attack):
    """R-PGD: projected steps along the reflected loss's raw gradient, from the image, with a decaying step size.

    Algorithm 1 with the step sizes of section 4.2: 10, times 0.2 every 10 steps. The paper does not give the number of
    steps; more than 40 have no use with these sizes (steps 31 to 40 have size 0.08). `step=sign` and `step=l2` use only
    the gradient's direction; `auto` means `sign` under Linf and `l2` under L2. The paper does not clamp the points to
    [0, 1]; `bench study reflected-attacks` compares attacks with and without this box. Deviation: an example stops at
    its first misclassified point. Algorithm 1 goes on and returns the point of highest loss (also misclassified, with
    two classes).
    """

    steps: int = 40  # gradient steps
    alpha: Length = 10.0  # step size
    step: Step = "raw"  # sign, L2-normalised or raw gradient; auto: by the norm
    decay: float = 0.2  # factor of the step size
    decay_every: int = 10  # steps between two decays

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay, self.decay_every)

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x_adv = batch.x
        for steps, alpha in decaying_steps(self.steps, in_units(self.alpha, threat.eps), self.decay, self.decay_every):
            x_adv = ascend(  # stop_when_misclassified: a broken example costs one pass per call and no more
                model, batch.x, batch.y, threat=threat, steps=steps, alpha=alpha, start=x_adv, loss=reflected,
                stop_when_misclassified=True, step=self.step,
            )  # fmt: skip
        return x_adv
