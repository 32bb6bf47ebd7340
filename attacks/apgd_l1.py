"""Auto-PGD under L1 (Croce and Hein, 2021, "Mind the box"): sparse steps, and larger balls before the ball itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.apgd_state import Walk
from attacks.losses import Loss
from attacks.pgd import look
from bench.core.threat import ThreatModel

BALLS = ((3, 0.3), (2, 0.3), (1, 0.4))  # multiples of eps, and their shares of the steps
FIRST_SHARE = 0.2  # of the pixels that the first steps change
SPARSER = 1.5  # how much sparser a step is than the best perturbation so far
FIXED = 0.95  # where the sparsity falls by less than this factor, the step size shrinks


@dataclass
class _Walk(Walk):
    kept: Tensor  # how many pixels a step changes
    sparsity: Tensor  # of the best perturbation, at the last checkpoint


def ascend_sparsely(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    loss: Callable[[Tensor], Loss],
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """As ascend_adaptively, under L1: runs in balls of 3, 2 and 1 eps, each from the best point of the one before."""
    for factor, share in BALLS:
        ball = ThreatModel(threat.norm, factor * threat.eps, threat.box)
        within = max(round(share * steps), 1)
        start, best_loss = _ascend_in_ball(
            model, x, y, threat=ball, steps=within, loss=loss, start=ball.project(start, x), leave=factor == 1
        )
    return start, best_loss


def _ascend_in_ball(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    loss: Callable[[Tensor], Loss],
    start: Tensor,
    leave: bool,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1. leave: an example stays at the first point that the model gets wrong; its loss is infinite."""
    pixels = x[0].numel()
    best, best_loss = start.clone(), torch.full((len(x),), torch.inf, device=x.device)
    eps = torch.as_tensor(threat.eps, dtype=x.dtype, device=x.device).expand(len(x))
    every = max(int(0.04 * steps), 1)
    few = torch.full_like(best_loss, max(FIRST_SHARE * pixels, 1))
    walk = _Walk(
        torch.arange(len(x), device=x.device), x, y, start, start, start, start, torch.full_like(best_loss, -torch.inf),
        eps, few, torch.full_like(few, pixels),
    )  # fmt: skip
    project = threat.projector(x)
    for step in range(steps + 1):
        if step > 0:
            walk.point = project(walk.point + walk.sideways(walk.length) * _sparse_direction(walk, threat.box))
        wrong, values, walk.gradient = look(model, walk.point, walk.y, loss(walk.rows), walk.rows, step < steps)
        if leave and wrong.any():
            best[walk.rows[wrong]] = walk.point[wrong]
            stay = (~wrong).nonzero().squeeze(1)
            if len(stay) == 0:
                return best, best_loss
            walk, values, eps = walk.of(stay), values[stay], eps[stay]
            project = threat.of(walk.rows).projector(walk.x)
        walk.remember(values)
        if step > 0 and step % every == 0:
            sparsity = (walk.top_point != walk.x).flatten(1).sum(dim=1).to(x.dtype)
            falls = sparsity < FIXED * walk.sparsity
            walk.kept, walk.sparsity = (sparsity / SPARSER).floor().clamp(min=1), sparsity
            walk.length = torch.where(falls, eps, torch.maximum(walk.length / SPARSER, eps / 10))
            walk.go_back(falls)
    best[walk.rows], best_loss[walk.rows] = walk.top_point, walk.top
    return best, best_loss


def _sparse_direction(walk: _Walk, box: tuple[float, float] | None) -> Tensor:
    """The steepest step of L1 length one that changes `kept` pixels, all by the same amount, none of them stuck."""
    gradient = walk.gradient
    if box is not None:
        stuck = ((walk.point <= box[0]) & (gradient < 0)) | ((walk.point >= box[1]) & (gradient > 0))
        gradient = gradient.masked_fill(stuck, 0)
    size = gradient.abs().flatten(1)
    smallest = size.sort(dim=1, descending=True).values.gather(1, walk.kept.long()[:, None] - 1)
    signs = (gradient.flatten(1).sign() * (size >= smallest)).reshape(gradient.shape)
    return signs / walk.sideways(signs.abs().flatten(1).sum(dim=1).clamp(min=1))
