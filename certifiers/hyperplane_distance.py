"""The distance from an image to a hyperplane inside the box (problem 3.14, solved greedily by Algorithm 3.4).

A step of size t moves each pixel j against a_j by min(t v_j, room_j), where v_j is 1 under Linf and |a_j| under L2, and
room_j is the distance to the box's end. No other step of the same length lowers <a, .> more (thesis, Eq. 3.19). The
decrease is

    f(t) = sum_j |a_j| min(t v_j, room_j),

concave and increasing, with kinks at room_j / v_j. Newton's method on f(t) = b therefore approaches the solution from
below, and reaches it after finitely many steps.
"""

import torch
from torch import Tensor

from bench.core.errors import UserError
from bench.core.threat import TINY, Norm

Box = tuple[float, float] | None


@torch.no_grad()
def distance(a: Tensor, b: Tensor, x: Tensor, norm: Norm, box: Box) -> Tensor:
    """The least norm of a delta with <a, delta> + b <= 0 and x + delta in the box, (N,T); 0 if b <= 0.

    a (N,T,C,H,W) and b (N,T): the linear functions' gradients, and their values at the images x (N,C,H,W). The distance
    is inf if there is no such delta. norm: Linf or L2; UserError for others.
    """
    size, room = a.flatten(2).abs(), _room(a.flatten(2), x, box)
    return _nearest(size, room, b, norm)[2]


def signed_distance(a: Tensor, b: Tensor, x: Tensor, norm: Norm, box: Box) -> Tensor:
    """`distance` if b > 0; if b < 0, minus the least norm of a delta with <a, delta> + b >= 0 (section 3.3.3).

    Differentiable in a and b; -inf or inf, without a gradient, if the whole box is on one side of the hyperplane. By
    the envelope theorem the gradient is that of mu (<a, delta> + b), with the nearest delta and its multiplier mu
    fixed: mu is 1 / f'(t) under Linf and t / |delta| under L2.
    """
    a = a.flatten(2)
    with torch.no_grad():
        side = torch.where(b < 0, -1.0, 1.0).to(b.dtype)
        downhill = -side[:, :, None] * a.sign()
        size, room = a.abs(), _room(-downhill, x, box)
        t, moves, length = _nearest(size, room, b.abs(), norm)
        slope = (size * (room > t[:, :, None])).sum(dim=2)
        mu = 1 / slope if norm == "Linf" else t / length
        mu = torch.where(mu.isfinite(), mu, 0)
        delta = downhill * moves
    zero = (a[:, :, None] @ delta[:, :, :, None])[:, :, 0, 0] + b  # up to rounding
    return side * length + mu * (zero - zero.detach())


def _room(a: Tensor, x: Tensor, box: Box) -> Tensor:
    """How far each pixel can move against a, (N,T,M)."""
    if box is None:
        return torch.full_like(a, torch.inf)
    low, high = (x - box[0]).flatten(1)[:, None], (box[1] - x).flatten(1)[:, None]
    return torch.where(a > 0, low, high)


def _nearest(size: Tensor, room: Tensor, b: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """The step size t (N,T), |delta| of each pixel (N,T,M) and the norm of delta (N,T). size: |a|."""
    t = _step_size(size, room, b, norm)
    if norm == "Linf":
        return t, torch.minimum(t[:, :, None], room), t
    moves = torch.minimum((t[:, :, None] * size).nan_to_num(0.0), room)
    return t, moves, torch.where(t.isinf(), t, torch.linalg.vector_norm(moves, dim=2))


def _step_size(size: Tensor, room: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The t (N,T) with f(t) = b; 0 if b <= 0, inf if no t is large enough."""
    if norm not in ("Linf", "L2"):
        raise UserError(f"the distance inside the box is not available under {norm}; use Linf or L2")
    goal = b.flatten()
    size, room = size.flatten(0, 1), room.flatten(0, 1)
    speed = torch.ones_like(size) if norm == "Linf" else size
    kink, rate, total = room / speed.clamp(min=TINY), size * speed, size * room
    t, rows = torch.zeros_like(goal), torch.arange(len(goal), device=goal.device)
    while len(rows):
        moving = kink > t[rows, None]
        slope = torch.where(moving, rate, 0).sum(dim=1)
        remaining = goal[rows] - torch.where(moving, 0, total).sum(dim=1)
        newton = torch.where(remaining > 0, remaining / slope, 0)  # inf if no pixel can move further
        increased = newton > t[rows]
        t[rows] = torch.maximum(newton, t[rows])
        unfinished = (increased & newton.isfinite()).nonzero().squeeze(1)
        rows, kink, rate, total = rows[unfinished], kink[unfinished], rate[unfinished], total[unfinished]
    return t.reshape(b.shape)
