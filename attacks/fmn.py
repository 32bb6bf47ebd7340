"""The fast minimum-norm attack (Pintor et al., 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.losses import Loss, gap, margin, others_by_logit
from attacks.minimum_norm import Nearest, boundary, dual_norm, fooled
from attacks.pgd import direction
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import Norm, ThreatModel

LONGER: dict[Norm, float] = {"Linf": 10, "L2": 1, "L1": 5}  # the first step, of alpha: these balls reach far in L2
LAST_ALPHA, LAST_GAMMA = 0.01, 0.001  # at the end: of the first step, and of the radius


@registry.attack("fmn")
@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """Normalised gradient steps in a ball that shrinks where its points are wrong and grows where they are right.

    Pintor et al. (2021), algorithm 1. alpha: the L2 length of the first step, ten times that under Linf and five times
    under L1; gamma: the share by which the radius changes at first; both fall along a cosine. Deviations:
    - The steps are shared by two descents: one on the published loss, the margin, and one on the lead over a single
      class, the one of `targets` whose linearised boundary is the nearest. The first makes for the likeliest class even
      where another is nearer. targets=1, or a model of two classes, spends all steps on the first.
    - While no wrong point is known, the radius is the published estimate times 1 + gamma, for the estimate itself ends
      on the boundary of a linear model and not behind it; pixels that the box holds back do not count in it.
    - Under L1 the projection is the exact one onto ball and box.
    - `halvings` bisections on the segment to the clean image end the attack.
    """

    norms = ("Linf", "L2", "L1")
    minimum_norm = True

    steps: int = 100
    alpha: float = 1.0
    gamma: float = 0.05
    targets: int = 9
    halvings: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise UserError(f"gamma is {self.gamma}; it must be between 0 and 1, as 0.05 is")

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        nearest = Nearest(model, batch, self.threat)
        rows = nearest.rows
        if len(rows) == 0:
            return nearest.point
        classes = others_by_logit(nearest.logits[rows], batch.y[rows])[:, : self.targets]
        with on_rows(rows):
            if classes.shape[1] == 1:
                self._descend(model, nearest, margin, self.steps)
            else:
                target = boundary(model, batch.x[rows], batch.y[rows], classes, self.threat.norm)[2]
                self._descend(model, nearest, margin, (self.steps + 1) // 2)
                self._descend(model, nearest, lambda logits, y: gap(logits, y, target), self.steps // 2)
        return nearest.finish(model, self.halvings)

    def _descend(self, model: nn.Module, nearest: Nearest, loss: Loss, steps: int) -> None:
        """Algorithm 1, from the clean images."""
        rows, norm, box = nearest.rows, self.threat.norm, self.threat.box
        x, y = nearest.x[rows], nearest.y[rows]
        x_adv, eps = x, torch.full_like(rows, torch.inf, dtype=torch.float64)
        found = torch.zeros_like(rows, dtype=torch.bool)
        first_alpha = LONGER[norm] * self.alpha
        for step in range(steps):
            alpha = _cosine(first_alpha, LAST_ALPHA * first_alpha, step / steps)
            gamma = _cosine(self.gamma, LAST_GAMMA, step / steps)
            x_adv = x_adv.detach().requires_grad_()
            logits = model(x_adv)
            height = loss(logits, y)
            (gradient,) = torch.autograd.grad(height.sum(), x_adv)
            x_adv, height, wrong = x_adv.detach(), height.detach(), fooled(logits, y)
            gradient = nearest.free(gradient, x_adv)
            nearest.see(x_adv, wrong, rows)
            found |= wrong
            estimate = self.threat.distance(x_adv, x) + height.abs() / dual_norm(gradient, norm)
            smaller = torch.minimum((1 - gamma) * eps, nearest.distance[rows])
            eps = torch.where(wrong, smaller, (1 + gamma) * torch.where(found, eps, estimate))
            x_adv = ThreatModel(norm, eps, box).projector(x)(x_adv - alpha * direction(gradient, "l2"))
        with torch.no_grad():
            nearest.see(x_adv, fooled(model(x_adv), y), rows)


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
