"""How far an image is from a hyperplane, inside the box: problem 3.14, which Algorithm 3.4 solves greedily.

Let a step of size t move each pixel j against a_j, by min(t v_j, room_j): v_j is 1 under Linf and |a_j| under L2, and
room_j what the box leaves there. No other step of its length lowers <a, .> as much (Eq. 3.19). It lowers it by

    f(t) = sum_j |a_j| min(t v_j, room_j),

which is concave and increasing, with kinks at room_j / v_j. So Newton's method on f(t) = b climbs to the solution from
below, and arrives after finitely many steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.core.errors import UserError
from bench.core.threat import TINY, Norm

Box = tuple[float, float] | None


@torch.no_grad()
def distance(a: Tensor, b: Tensor, x: Tensor, norm: Norm, box: Box) -> Tensor:
    """The least norm of a Delta with <a, Delta> + b <= 0 and x + Delta in the box, (N,T); 0 where b <= 0.

    a (N,T,C,H,W), b (N,T) the linear functions' values at the images x (N,C,H,W). inf where there is no such Delta.
    norm: Linf or L2; UserError for another.
    """
    size, room = a.flatten(2).abs(), _room(a.flatten(2), x, box)
    t = _climb(size, room, b, norm)
    return _length(_moved(size, room, t, norm), t, norm)


def signed_distance(a: Tensor, b: Tensor, x: Tensor, norm: Norm, box: Box) -> Tensor:
    """`distance` where b > 0; where b < 0 minus the least norm of a Delta with <a, Delta> + b >= 0 (section 3.3.3).

    Differentiable in a and b; -inf or inf, with no gradient, where the whole box is on one side of the hyperplane. By
    the envelope theorem the gradient is that of mu (<a, Delta> + b), with the nearest Delta and its multiplier mu held
    fixed: mu is 1 / f'(t) under Linf and t / |Delta| under L2.
    """
    a = a.flatten(2)
    with torch.no_grad():
        side = torch.where(b < 0, -1.0, 1.0).to(b.dtype)
        downhill = -side[:, :, None] * a.sign()
        size, room = a.abs(), _room(-downhill, x, box)
        t = _climb(size, room, b.abs(), norm)
        moved = _moved(size, room, t, norm)
        length = _length(moved, t, norm)
        slope = (size * (room > t[:, :, None])).sum(dim=2)
        mu = 1 / slope if norm == "Linf" else t / length
        mu = torch.where(mu.isfinite(), mu, 0)
        delta = downhill * moved
    zero = (a[:, :, None] @ delta[:, :, :, None])[:, :, 0, 0] + b  # but for rounding
    return side * length + mu * (zero - zero.detach())


def _room(a: Tensor, x: Tensor, box: Box) -> Tensor:
    """How far each pixel can go against a, (N,T,M)."""
    if box is None:
        return torch.full_like(a, torch.inf)
    low, high = (x - box[0]).flatten(1)[:, None], (box[1] - x).flatten(1)[:, None]
    return torch.where(a > 0, low, high)


def _climb(size: Tensor, room: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The t (N,T) with f(t) = b; 0 where b <= 0, inf where no t is large enough. size: |a|."""
    if norm not in ("Linf", "L2"):
        raise UserError(f"the distance inside the box has no {norm} form; its norms are Linf, L2")
    goal = b.flatten()
    size, room = size.flatten(0, 1), room.flatten(0, 1)
    speed = torch.ones_like(size) if norm == "Linf" else size
    kink, rate, whole = room / speed.clamp(min=TINY), size * speed, size * room
    t, rows = torch.zeros_like(goal), torch.arange(len(goal), device=goal.device)
    while len(rows):
        moving = kink > t[rows, None]
        slope = torch.where(moving, rate, 0).sum(dim=1)
        left = goal[rows] - torch.where(moving, 0, whole).sum(dim=1)
        after = torch.where(left > 0, left / slope, 0)  # inf where nothing moves any more
        grown = after > t[rows]
        t[rows] = torch.maximum(after, t[rows])
        stay = (grown & after.isfinite()).nonzero().squeeze(1)
        rows, kink, rate, whole = rows[stay], kink[stay], rate[stay], whole[stay]
    return t.reshape(b.shape)


def _moved(size: Tensor, room: Tensor, t: Tensor, norm: Norm) -> Tensor:
    """|Delta| of each pixel, (N,T,M)."""
    return torch.minimum(t[:, :, None] if norm == "Linf" else (t[:, :, None] * size).nan_to_num(0.0), room)


def _length(moved: Tensor, t: Tensor, norm: Norm) -> Tensor:
    return t if norm == "Linf" else torch.where(t.isinf(), t, torch.linalg.vector_norm(moved, dim=2))
