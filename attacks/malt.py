"""MALT (Melamed, Yehudai and Shamir, 2024): Auto-PGD towards the classes that are nearest for the linearised model."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.apgd import APGD, auto_pgd
from attacks.losses import TargetedDLR, TargetedLoss, others_by_logit
from attacks.minimum_norm import linearised, signed_distance
from bench.core import registry
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel

LOSSES = {"gap": TargetedLoss, "dlr": TargetedDLR}
MIN_RUNS = 256  # several targets run at once if fewer examples than this are left in the batch


@registry.attack("malt")
@dataclass(frozen=True, kw_only=True)
class MALT(APGD):
    """Auto-PGD towards the classes with the nearest boundaries of the model linearised at the image.

    Melamed, Yehudai and Shamir (2024, arXiv 2407.02240) order the targets by (z_t - z_y) divided by the norm of its
    gradient, which takes one backward pass per class. Deviations:
    - The norm is the dual of the threat's, which makes the quotient the distance to the linearised boundary.
    - The default loss is z_t - z_y (gap), for any number of classes. The targeted DLR loss of APGD-T (dlr) needs four.
    - The defaults are 20 steps and three targets, which find nearly all that 100 steps and nine targets find.
    """

    steps: int = 20  # steps of Auto-PGD towards each target
    targets: int = 3  # target classes, those of the nearest boundaries
    loss: Literal["gap", "dlr"] = "gap"  # gap of logits, or targeted DLR loss

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        if self.loss == "dlr" and classes < 4:
            raise UserError(f"malt:loss=dlr needs at least 4 classes, not {classes}; use malt:loss=gap")

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        order = nearest_classes(model, batch.x, batch.y, threat)[:, : self.targets]
        order = order.repeat(1, self.restarts)  # a restart is one more run towards the same class
        x_adv, rows, first = batch.x.clone(), torch.arange(len(batch), device=batch.x.device), 0
        highest = torch.full_like(rows, -torch.inf, dtype=torch.float32)
        while first < order.shape[1] and len(rows) > 0:
            at_once = max(MIN_RUNS // len(rows), 1)
            targets = order[rows, first : first + at_once]
            first += at_once
            pairs = rows.repeat_interleave(targets.shape[1])
            x, y, around = batch.x[pairs], batch.y[pairs], threat.of(pairs)
            loss, start = LOSSES[self.loss](targets.flatten()), around.random_start(x, generator)
            with on_rows(pairs):
                points, losses = auto_pgd(model, x, y, threat=around, steps=self.steps, loss=loss, start=start)
            best = losses.reshape(targets.shape).argmax(dim=1)
            best += torch.arange(len(rows), device=best.device) * targets.shape[1]
            points, losses = points[best], losses[best]
            higher = losses > highest[rows]
            x_adv[rows[higher]], highest[rows[higher]] = points[higher], losses[higher]
            rows = rows[highest[rows] < torch.inf]
        return x_adv


def nearest_classes(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """All classes except the label, by increasing distance to their linearised boundary: (B,K-1) int64."""
    with torch.no_grad():
        classes = others_by_logit(model(x), y)
    distance = [signed_distance(*value_and_gradient, threat) for value_and_gradient in linearised(model, x, y, classes)]
    return classes.gather(1, torch.stack(distance, dim=1).argsort(dim=1))
