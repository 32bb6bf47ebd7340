"""MALT (Melamed, Yehudai and Shamir, 2024): Auto-PGD towards the classes that the linearised model reaches soonest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.losses import Loss, Towards, dlr_towards, others_by_logit
from attacks.minimum_norm import dual_norm, linearised
from bench.core import registry
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import Norm

AT_ONCE = 256  # climbs, where a batch has fewer examples left


@registry.attack("malt")
@dataclass(frozen=True, kw_only=True)
class MALT(APGD):
    """Auto-PGD towards the classes that the model, linearised at the image, reaches soonest.

    Melamed, Yehudai and Shamir (2024, arXiv 2407.02240) order the targets by (z_t - z_y) over the length of its
    gradient, for which one backward pass a class pays. Three deviations: the length is in the norm dual to the
    threat's, which is the distance to the linearised boundary; the default loss is z_t - z_y itself (gap), which works
    with any number of classes, and the targeted ratio of APGD-T (dlr) needs four; and few steps towards three classes
    are the default, for they find nearly all that nine classes and 100 steps find. All targets are climbed side by
    side where the batch leaves room.
    """

    steps: int = 20
    targets: int = 3
    loss: Literal["gap", "dlr"] = "gap"

    def check_fits(self, shape: tuple[int, ...], classes: int) -> None:
        if self.loss == "dlr" and classes < 4:
            raise UserError(f"malt:loss=dlr needs at least 4 classes, not {classes}; use malt:loss=gap")

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        order = nearest_classes(model, batch.x, batch.y, self.threat.norm)[:, : self.targets]
        order = order.repeat(1, self.restarts)  # a restart is one more run towards the same class
        examples = torch.arange(len(batch), device=batch.x.device)
        x_adv = batch.x.clone()
        height = torch.full_like(examples, -torch.inf, dtype=torch.float32)
        rows, column = examples, 0
        while column < order.shape[1] and len(rows) > 0:
            abreast = max(AT_ONCE // len(rows), 1)
            targets = order[rows, column : column + abreast]
            column += abreast
            points, heights = self._climb(model, batch, rows, targets, generator)
            higher = heights > height[rows]
            x_adv[rows[higher]], height[rows[higher]] = points[higher], heights[higher]
            rows = rows[height[rows] < torch.inf]
        return x_adv

    def _climb(
        self, model: nn.Module, batch: Batch, rows: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The highest points (b,C,H,W) of `rows` (b,) towards `targets` (b,T), climbed together, and their heights."""
        pairs, target = rows.repeat_interleave(targets.shape[1]), targets.flatten()
        with on_rows(pairs):
            points, heights = self.ascend(
                model,
                batch.x[pairs],
                batch.y[pairs],
                self.threat.of(pairs),
                lambda some: LOSSES[self.loss](target[some]),
                generator,
            )
        best = heights.reshape(targets.shape).argmax(dim=1)
        best += torch.arange(len(rows), device=best.device) * targets.shape[1]
        return points[best], heights[best]


LOSSES: dict[str, Callable[[Tensor], Loss]] = {"gap": Towards, "dlr": dlr_towards}


def nearest_classes(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """All classes but the label, that of the nearest linearised boundary first: (B,K-1) int64."""
    with torch.no_grad():
        classes = others_by_logit(model(x), y)
    distance = [height / dual_norm(slope, norm) for height, slope in linearised(model, x, y, classes)]
    return classes.gather(1, torch.stack(distance, dim=1).argsort(dim=1))
