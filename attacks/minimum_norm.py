"""What the minimum-norm attacks share: the nearest wrong point of each example, and which boundary is the nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attacks.losses import margin
from bench.core.contracts import Batch
from bench.core.passes import on_rows
from bench.core.threat import TINY, Norm, ThreatModel

DUAL: dict[Norm, float] = {"Linf": 1, "L2": 2, "L1": torch.inf}
CHECKS, FARTHER = 5, 1.001  # of the points in one batch, and how far the doubtful ones are moved out after each
ROUNDING = 2e-6  # of the largest logit: up to 7e-7 was measured to change in float32 with the size of the batch


class Nearest:
    """The nearest wrong point that was seen of each example.

    point (B,C,H,W): the clean image where there is none. distance (B,) float64, in the threat's norm: zero where the
    clean image is wrong already, infinity where no wrong point was seen. logits (B,K): of the clean images.
    """

    def __init__(self, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
        self.x, self.y, self.threat = batch.x, batch.y, threat
        with torch.no_grad():
            self.logits = model(batch.x)
        self.point = batch.x.clone()
        wrong = self.logits.argmax(dim=1) != batch.y
        self.distance = torch.zeros(len(batch), dtype=torch.float64, device=batch.x.device)
        self.distance[~wrong] = torch.inf
        self.rows = (~wrong).nonzero().squeeze(1)  # (b,), the examples to attack

    def see(self, x_adv: Tensor, wrong: Tensor, rows: Tensor) -> None:
        """Points x_adv (b,C,H,W) of `rows` (b,), and which of them are wrong, (b,) bool."""
        x_adv, rows = x_adv.detach()[wrong], rows[wrong]
        distance = self.threat.distance(x_adv, self.x[rows])
        nearer = distance < self.distance[rows]
        self.point[rows[nearer]] = x_adv[nearer]
        self.distance[rows[nearer]] = distance[nearer]

    def clamp(self, x_adv: Tensor) -> Tensor:
        """Into the box, where there is one."""
        return x_adv if self.threat.box is None else x_adv.clamp(*self.threat.box)

    def free(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient without the pixels of x at an end of the box that a step down it would push out."""
        if self.threat.box is None:
            return gradient
        low, high = self.threat.box
        return gradient.masked_fill(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)), 0)

    @torch.no_grad()
    def bisect(
        self, model: nn.Module, path: Callable[[Tensor], Tensor], right: Tensor, wrong: Tensor, rows: Tensor, times: int
    ) -> None:
        """Halve `times` the way between a right and a wrong place, (b,), on each row's path (b,) -> (b,C,H,W)."""
        if len(rows) == 0:
            return
        with on_rows(rows):
            for _ in range(times):
                middle = (right + wrong) / 2
                x_adv = path(middle)
                there = fooled(model(x_adv), self.y[rows])
                self.see(x_adv, there, rows)
                right, wrong = torch.where(there, right, middle), torch.where(there, middle, wrong)

    def finish(self, model: nn.Module, halvings: int) -> Tensor:
        """The points, after bisection on the segments from the clean images, each wrong when all are seen together."""
        rows = self.rows[self.distance[self.rows].isfinite()]
        x = self.x[rows]
        delta = self.point[rows] - x
        right, wrong = torch.zeros_like(rows, dtype=x.dtype), torch.ones_like(rows, dtype=x.dtype)
        self.bisect(model, lambda t: x + column(t, x) * delta, right, wrong, rows, halvings)
        for _ in range(CHECKS if len(rows) else 0):
            with torch.no_grad():
                doubtful = rows[(model(self.point).argmax(dim=1) == self.y)[rows]]
            if len(doubtful) == 0:
                break
            x = self.x[doubtful]
            self.point[doubtful] = self.clamp(x + FARTHER * (self.point[doubtful] - x))
        return self.point


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Where a wrong class leads, by more than rounding may take back: (B,) bool."""
    logits = logits.detach().float()
    return margin(logits, y) < -ROUNDING * logits.abs().amax(dim=1)


def linearised(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, aim: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each column l of `classes` (b,T), z_y - z_l at x (b,C,H,W) and its gradient there: (b,) and (b,C,H,W).

    One backward pass each. aim: added to the values, in units of the largest logit.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits.gather(1, classes) + aim * logits.detach().abs().amax(1, keepdim=True)
    for k, value in enumerate(gaps.unbind(dim=1), start=1):
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=k < gaps.shape[1])
        yield value.detach(), gradient


def boundary(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, norm: Norm, aim: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest boundary of label y in the linearisation of the model at x (b,C,H,W), among `classes` (b,T).

    z_y - z_l (b,) for the class l behind it, its gradient (b,C,H,W), and that class (b,).
    """
    planes = linearised(model, x, y, classes, aim)
    height, slope = next(planes)
    height, target = height.clone(), classes[:, 0].clone()
    least = height.abs() / dual_norm(slope, norm) if classes.shape[1] > 1 else height
    for (other, gradient), one in zip(planes, classes.T[1:], strict=True):
        distance = other.abs() / dual_norm(gradient, norm)
        nearer = distance < least
        height[nearer], slope[nearer], target[nearer] = other[nearer], gradient[nearer], one[nearer]
        least = torch.minimum(distance, least)
    return height, slope, target


def dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """By how much a step of length one in `norm` can change a linear function of this gradient: (B,), never zero."""
    return torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1).clamp(min=TINY)


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value an example, (B,), in the type and to the shape that broadcasts against images (B,C,H,W)."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
