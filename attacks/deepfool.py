"""DeepFool (Moosavi-Dezfooli et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.losses import others_by_logit
from attacks.minimum_norm import Nearest, boundary, column, dual_norm, fooled
from attacks.pgd import Step, direction
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.passes import on_rows

NUDGE = 1e-4  # by which a step goes on behind the boundary, as in the authors' code; else it ends on it


@registry.attack("deepfool")
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Steps to the nearest class boundary of the linearised model, until the prediction changes; then back to the edge.

    Moosavi-Dezfooli et al. (2016), algorithm 2, and its Linf form (section 3.3). targets: the candidates are so many
    classes, those with the highest logits at the clean image. Deviations: the class to leave is the label's. Every
    iterate is clamped to the box. The overshoot takes the end `overshoot` too far even where the model is linear, so a
    bisection of `halvings` steps leads back along the segment to the clean image; halvings=0 is the published attack.
    """

    minimum_norm = True

    steps: int = 50
    overshoot: float = 0.02
    targets: int = 9
    halvings: int = 10

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        nearest = Nearest(model, batch, self.threat)
        classes = others_by_logit(nearest.logits, batch.y)[:, : self.targets]
        step: Step = "sign" if self.threat.norm == "Linf" else "l2"
        rows = nearest.rows
        x_adv, total = batch.x[rows], torch.zeros_like(batch.x[rows])
        for _ in range(self.steps):
            if len(rows) == 0:
                break
            x, y = batch.x[rows], batch.y[rows]
            with on_rows(rows):
                height, slope, _ = boundary(model, x_adv, y, classes[rows], self.threat.norm)
                distance = height.abs() / dual_norm(slope, self.threat.norm)
                total = nearest.clamp(x + total - column(distance + NUDGE, x) * direction(slope, step)) - x
                x_adv = nearest.clamp(x + (1 + self.overshoot) * total)
                with torch.no_grad():
                    wrong = fooled(model(x_adv), y)
            nearest.see(x_adv, wrong, rows)
            rows, x_adv, total = rows[~wrong], x_adv[~wrong], total[~wrong]
        return nearest.finish(model, self.halvings)
