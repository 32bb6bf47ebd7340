"""Lines above and below a smooth curve, from its derivative.

For any slope s, the best line below a curve f is s x + min (f(x) - s x). The minimum is at an end of the interval,
where f' jumps, or where f' = s; that point is found by bisection in each piece in which f' is monotonic. So every slope
gives a sound line, and the choice of the slope only decides how tight it is.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from certifiers.relaxations import LinearRelaxation

Function = Callable[[Tensor], Tensor]
STEPS = 40  # of bisection: an error in x of 1e-12 of the interval changes the bound by the square of it
NARROW = 1e-3  # width below which the difference quotient would be inaccurate


def enclosing_lines(
    curve: Function, derivative: Function, breaks: Sequence[float], low: Tensor, high: Tensor,
    *, parallel: bool, error: float,
) -> LinearRelaxation:  # fmt: skip
    """Lines with the slope of the chord, or each with the best of some slopes: least area, hence nearest at the middle.

    breaks: the ends of the pieces in which the derivative is monotonic. error: of the curve, added to both lines.
    Differentiable in low and high.
    """
    middle = (low + high) / 2
    width = high - low
    narrow = width < NARROW
    chord = (curve(high) - curve(low)) / torch.where(narrow, 1, width)
    chord = torch.where(narrow, derivative(middle), chord)
    if parallel:
        slope = above = below = chord
        slopes = slope[None]
    else:
        slopes = torch.stack([chord, derivative(middle), derivative(low), derivative(high)])
    least, most = _extremes(curve, derivative, breaks, low, high, slopes)
    if not parallel:
        with torch.no_grad():
            best_below = (slopes * middle + least).argmax(dim=0, keepdim=True)
            best_above = (slopes * middle + most).argmin(dim=0, keepdim=True)
        below, above = slopes.gather(0, best_below)[0], slopes.gather(0, best_above)[0]
        least, most = least.gather(0, best_below), most.gather(0, best_above)
    size = torch.maximum(low.abs(), high.abs()).detach()
    pad = error + 8 * torch.finfo(low.dtype).eps * (1 + size)  # of the curve, the slope and their difference
    return LinearRelaxation(below, least[0] - pad, above, most[0] + pad)


def _extremes(
    curve: Function, derivative: Function, breaks: Sequence[float], low: Tensor, high: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """The least and greatest value of f(x) - s x over [low, high] for each s of `slopes` (S,*shape)."""
    points = [low.expand_as(slopes), high.expand_as(slopes)]
    ends = [low.detach(), *(low.detach().clamp(min=each).minimum(high.detach()) for each in breaks), high.detach()]
    with torch.no_grad():
        for left, right in pairwise(ends):
            points += [left.expand_as(slopes), *_where_slope_is(derivative, left, right, slopes)]
    values = torch.stack([curve(x) - slopes * x for x in points])
    return values.amin(dim=0), values.amax(dim=0)


def _where_slope_is(derivative: Function, left: Tensor, right: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Points on both sides of where a derivative that is monotonic in [left, right] has each of the slopes."""
    rising = derivative(right) >= derivative(left)
    left, right = left.expand_as(slopes), right.expand_as(slopes)
    for _ in range(STEPS):
        middle = (left + right) / 2
        beyond = (derivative(middle) < slopes) == rising
        left, right = torch.where(beyond, middle, left), torch.where(beyond, right, middle)
    return left, right
