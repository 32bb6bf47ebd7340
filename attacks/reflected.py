"""The attacks of the reflected loss: FGSM, BIM and PGD that climb the likelihood of the wrong class.

papers/reflected-loss.txt ("Robustness Guarantees for Adversarially Trained Neural Networks"): with two classes
l_-(z) = -log(1 + e^z) of the margin z (section 2), with more the log-likelihood of the most likely wrong class, chosen
anew at each step (section 4.3, greedy). With two classes its gradient and the cross entropy's point the same way, so
that steps of the sign or of the normalised gradient make the same attack; raw steps make another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.losses import reflected
from attacks.pgd import ascend
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.specs import Length, OfEps, in_units


@registry.attack("r-fgsm")
@dataclass(frozen=True, kw_only=True)
class RFGSM(Attack):
    """FGSM on the reflected loss: one step of size eps, along the gradient's sign (Linf) or the gradient (L2)."""

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        x_adv, _ = ascend(
            model, batch.x, batch.y, threat=self.threat, steps=1, alpha=self.threat.eps, start=batch.x, loss=reflected
        )
        return x_adv


@registry.attack("r-bim")
@dataclass(frozen=True, kw_only=True)
class RBIM(Attack):
    """BIM on the reflected loss: steps of eps / steps from the image itself; the last iterate."""

    steps: int = 10
    alpha: Length | None = None  # eps / steps

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        alpha = in_units(self.alpha or OfEps(1 / self.steps), self.threat.eps)
        x_adv, _ = ascend(
            model, batch.x, batch.y, threat=self.threat, steps=self.steps, alpha=alpha, start=batch.x, loss=reflected
        )
        return x_adv


@registry.attack("r-pgd")
@dataclass(frozen=True, kw_only=True)
class RPGD(Attack):
    """R-PGD: projected steps of the reflected loss's own gradient, from the image, with a step size that decays.

    Algorithm 1 with the steps of section 4.2: size 10, times 0.2 every 10 steps. `step=sign` and `step=l2` take the
    gradient's direction alone; `auto` is the first under Linf and the second under L2. The section's points may leave
    [0, 1]: for that give a threat model without a box. Deviation: an example stays at the first point that the model
    gets wrong, where Algorithm 1 goes on and returns its highest point (which is wrong too, with two classes).
    """

    steps: int = 40
    alpha: Length = 10.0
    step: Literal["auto", "sign", "l2", "raw"] = "raw"
    decay: float = 0.2
    decay_every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay <= 0 or self.decay_every < 1:
            raise UserError(
                f"r-pgd: decay is {self.decay:g} and decay_every {self.decay_every}; both must be positive "
                "(decay=1 keeps the step size)"
            )

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        x_adv = batch.x
        alpha = in_units(self.alpha, self.threat.eps)
        for done in range(0, self.steps, self.decay_every):
            x_adv, _ = ascend(
                model,
                batch.x,
                batch.y,
                threat=self.threat,
                steps=min(self.decay_every, self.steps - done),
                alpha=alpha * self.decay ** (done // self.decay_every),
                start=x_adv,
                loss=reflected,
                step=None if self.step == "auto" else self.step,
                leave=True,  # a broken example costs one pass at the start of each stretch, and no more
            )
        return x_adv
