"""The fast minimum-norm attack (Pintor et al., 2021)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import without_blocked_pixels
from attacks.losses import Loss, gap, margin, others_by_logit
from attacks.minimum_norm import NearestAdversarial, clearly_misclassified, nearest_boundary, signed_distance
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import Norm, ThreatModel, unit_l2

FIRST_STEP: dict[Norm, float] = {"Linf": 10, "L2": 1, "L1": 5}  # in units of alpha, as the balls differ in L2 diameter
LAST_ALPHA, LAST_GAMMA = 0.01, 0.001  # the last step as a share of the first one; the last gamma


@registry.attack("fmn")
@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """Normalised gradient steps in a ball that shrinks if the point is adversarial and grows if it is not.

    Pintor et al. (2021), Algorithm 1. `alpha` and `gamma` decrease along a cosine. Deviations:
    - Two descents share the steps: one on the published loss, the margin, and one on the gap to a single class, the one
      among `targets` classes whose linearised boundary is nearest. The first approaches the most likely incorrect class
      even if another one is nearer. With targets=1, or a model of two classes, the first takes all steps.
    - Until an adversarial point is found, the radius is the published estimate times 1 + gamma, as the estimate itself
      ends on the boundary of a linear model. The estimate ignores pixels that the box blocks.
    - Under L1 the projection is the exact one onto ball and box.
    - `halvings` bisections on the segment to the clean image follow.
    """

    norms = ("Linf", "L2", "L1")
    minimum_norm = True

    steps: int = 100  # gradient steps
    alpha: float = 1.0  # L2 length of the first step; ten times as long under Linf, five times under L1
    gamma: float = 0.05  # relative change of the radius in the first step
    targets: int = 9  # target classes, those of the highest logits
    halvings: int = 10  # bisections between the adversarial point and the image

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise UserError(f"fmn: gamma is {self.gamma}; it must be between 0 and 1, for example 0.05")

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        nearest = NearestAdversarial(model, batch, threat)
        rows = nearest.rows
        if len(rows) == 0:
            return nearest.point
        classes = others_by_logit(nearest.logits[rows], batch.y[rows])[:, : self.targets]
        with on_rows(rows):
            if classes.shape[1] == 1:
                self._descend(nearest, margin, self.steps)
            else:
                target = nearest_boundary(model, batch.x[rows], batch.y[rows], classes, threat)[2]
                self._descend(nearest, margin, (self.steps + 1) // 2)
                self._descend(nearest, lambda logits, y: gap(logits, y, target), self.steps // 2)
        return nearest.finish(self.halvings)

    def _descend(self, nearest: NearestAdversarial, loss: Loss, steps: int) -> None:
        """Algorithm 1, from the clean images."""
        rows, threat = nearest.rows, nearest.threat
        x, y = nearest.x[rows], nearest.y[rows]
        x_adv, eps = x, torch.full_like(rows, torch.inf, dtype=torch.float64)
        broken = torch.zeros_like(rows, dtype=torch.bool)
        first_alpha = FIRST_STEP[threat.norm] * self.alpha
        for step in range(steps):
            alpha = _cosine(first_alpha, LAST_ALPHA * first_alpha, step / steps)
            gamma = _cosine(self.gamma, LAST_GAMMA, step / steps)
            x_adv = x_adv.detach().requires_grad_()
            logits = nearest.model(x_adv)
            losses = loss(logits, y)
            (gradient,) = torch.autograd.grad(losses.sum(), x_adv)
            x_adv, adversarial = x_adv.detach(), clearly_misclassified(logits, y)
            gradient = -without_blocked_pixels(-gradient, x_adv, threat)
            nearest.update(x_adv, adversarial, rows)
            broken |= adversarial
            estimate = threat.distance(x_adv, x) + signed_distance(losses.detach(), gradient, threat).abs()
            smaller = torch.minimum((1 - gamma) * eps, nearest.distance[rows])
            eps = torch.where(adversarial, smaller, (1 + gamma) * torch.where(broken, eps, estimate))
            x_adv = ThreatModel(threat.norm, eps, threat.box).projector(x)(x_adv - alpha * unit_l2(gradient))
        with torch.no_grad():
            nearest.update(x_adv, clearly_misclassified(nearest.model(x_adv), y), rows)


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
