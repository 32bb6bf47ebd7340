"""DeepFool (Moosavi-Dezfooli et al., 2016)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import per_example
from attacks.losses import others_by_logit
from attacks.minimum_norm import NearestAdversarial, clearly_misclassified, nearest_boundary, signed_distance
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel

MARGIN = 1e-4  # added to the length of each step, as in the authors' code; otherwise it ends on the boundary


@registry.attack("deepfool")
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Steps to the nearest class boundary of the linearised model until the prediction changes, then a bisection.

    Moosavi-Dezfooli et al. (2016), Algorithm 2, and its Linf form (section 3.3). Deviations:
    - The attack leaves the class of the label, not of the prediction.
    - Every iterate is clamped to the box.
    - `halvings` bisections on the segment to the clean image undo the overshoot, which makes even a linear model's
      perturbation too large by the factor 1 + overshoot. halvings=0 is the published attack.
    """

    minimum_norm = True

    steps: int = 50  # gradient steps
    overshoot: float = 0.02  # share of a step by which it goes beyond the boundary
    targets: int = 9  # number of classes considered, those with the highest logits at the clean image
    halvings: int = 10  # bisections between the adversarial point and the image

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overshoot < 0:
            raise UserError(f"deepfool: overshoot is {self.overshoot}; it must not be negative")

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        nearest = NearestAdversarial(model, batch, threat)
        classes = others_by_logit(nearest.logits, batch.y)[:, : self.targets]
        rows = nearest.rows
        x_adv, total = batch.x[rows], torch.zeros_like(batch.x[rows])
        for _ in range(self.steps):
            if len(rows) == 0:
                break
            x, y = batch.x[rows], batch.y[rows]
            with on_rows(rows):
                value, gradient, _ = nearest_boundary(model, x_adv, y, classes[rows], threat)
                length = per_example(signed_distance(value, gradient, threat).abs() + MARGIN, x)
                total = threat.clamp(x + total - length * threat.steepest(gradient)) - x
                x_adv = threat.clamp(x + (1 + self.overshoot) * total)
                with torch.no_grad():
                    adversarial = clearly_misclassified(model(x_adv), y)
            nearest.update(x_adv, adversarial, rows)
            rows, x_adv, total = rows[~adversarial], x_adv[~adversarial], total[~adversarial]
        return nearest.finish(self.halvings)
