"""Lines above and below a smooth curve, from its derivative.

For any slope s, the best line below a curve f is s x + min (f(x) - s x). The minimum is at an end of the interval,
where f' jumps, or where f' = s. The last point is found by bisection in each piece in which f' is monotonic. So every
slope gives a sound line, and the choice of the slope only affects its tightness.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from certifiers.relaxations import LinearRelaxation

Function = Callable[[Tensor], Tensor]
STEPS = 40  # of bisection: an error in x of 1e-12 of the interval changes the bound by its square
NARROW = 1e-3  # width below which the difference quotient would be inaccurate


def enclosing_lines(
    curve: Function, derivative: Function, breaks: Sequence[float], low: Tensor, high: Tensor,
    *, parallel: bool, error: float,
) -> LinearRelaxation:  # fmt: skip
    """Lines with the slope of the chord, or each with the best of several slopes (least area: nearest at the middle).

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
    """The minimum and maximum of f(x) - s x over [low, high] for each s of `slopes` (S,*shape)."""
    points = [low.expand_as(slopes), high.expand_as(slopes)]
    ends = [low.detach(), *(low.detach().clamp(min=each).minimum(high.detach()) for each in breaks), high.detach()]
    with torch.no_grad():
        for left, right in pairwise(ends):
            points += [left.expand_as(slopes), *_where_slope_is(derivative, left, right, slopes)]
    values = torch.stack([curve(x) - slopes * x for x in points])
    return values.amin(dim=0), values.amax(dim=0)


def _where_slope_is(derivative: Function, left: Tensor, right: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Points on both sides of where a derivative that is monotonic in [left, right] equals each of the slopes."""
    rising = derivative(right) >= derivative(left)
    left, right = left.expand_as(slopes), right.expand_as(slopes)
    for _ in range(STEPS):
        middle = (left + right) / 2
        beyond = (derivative(middle) < slopes) == rising
        left, right = torch.where(beyond, middle, left), torch.where(beyond, right, middle)
    return left, right


def s_curve_lines(
    curve: Function, derivative: Function, low: Tensor, high: Tensor, *, middle: float
) -> LinearRelaxation:  # fmt: skip
    """CROWN's lines for a curve that is convex left of 0, concave right of it, and symmetric about (0, middle).

    Zhang et al. (2018), table 2 and section 3: where the curve is concave, the upper line is the tangent at the middle
    of the interval, and where it is convex, the chord. Across zero it passes through the curve's left end and touches
    it at d >= 0, found by bisection, or is the chord if d is beyond the interval. The lower line is the mirror image.
    Intervals narrower than NARROW have constants. Differentiable in low and high.
    """
    slope, bias = _s_curve_above(curve, derivative, low, high)
    lower_slope, mirrored = _s_curve_above(curve, derivative, -high, -low)
    pad = 8 * torch.finfo(low.dtype).eps  # the rounding error of the curve and the biases
    return LinearRelaxation(lower_slope, 2 * middle - mirrored - pad, slope, bias + pad)


def _s_curve_above(curve: Function, derivative: Function, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and bias of the upper line of s_curve_lines."""
    at_low, at_high, width = curve(low), curve(high), high - low
    narrow = width < NARROW
    chord = (at_high - at_low) / torch.where(narrow, 1, width)
    chord_bias = torch.maximum(at_low - chord * low, at_high - chord * high)  # the outer one: the slope was rounded
    with torch.no_grad():
        touching, right = torch.zeros_like(low), high.clamp(min=0)
        beyond = _tangent_at(curve, derivative, right, low) < at_low  # the tangent point is beyond the interval
        for _ in range(STEPS):
            tried = (touching + right) / 2
            above = _tangent_at(curve, derivative, tried, low) >= at_low
            touching, right = torch.where(above, touching, tried), torch.where(above, tried, right)
        slope, lever = derivative(right), torch.where(right > low, right - low, 1)
        turning, bias = (slope - derivative(low)) / lever, curve(right) - slope * right
    # the values are those of the tangent at `right`, and the gradients are those of the line through the left end
    slope = slope + turning * (low - low.detach())
    through = at_low - slope * low
    bias = bias + (through - through.detach())
    half = (low + high) / 2
    concave = low >= 0
    slope = torch.where(concave, derivative(half), slope)
    bias = torch.where(concave, curve(half) - derivative(half) * half, bias)
    convex = ~concave & ((high <= 0) | beyond)
    slope, bias = torch.where(convex, chord, slope), torch.where(convex, chord_bias, bias)
    return torch.where(narrow, 0, slope), torch.where(narrow, at_high, bias)


def _tangent_at(curve: Function, derivative: Function, point: Tensor, x: Tensor) -> Tensor:
    """The value at x of the tangent at `point`."""
    return curve(point) + derivative(point) * (x - point)
