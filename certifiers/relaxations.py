"""Linear relaxations: two lines that enclose an activation wherever its input is in [low, high]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from certifiers.layers import Activation

RelaxationKind = Literal["parallel", "adaptive", "tight"]
FLAT = 0.01  # below this slope of an S-curve's chord the lines are constants: the tangent points are too far out


@dataclass(frozen=True)
class LinearRelaxation:
    """lower_slope x + lower_bias <= phi(x) <= upper_slope x + upper_bias for x in [low, high].

    Tensors in the shape of the interval, differentiable in its ends. Parallel lines share one slope tensor. lower_bias
    None: the lower line passes through (0, 0).
    """

    lower_slope: Tensor
    lower_bias: Tensor | None
    upper_slope: Tensor
    upper_bias: Tensor

    @property
    def parallel(self) -> bool:
        return self.lower_slope is self.upper_slope

    @property
    def gap(self) -> Tensor:
        """upper_bias - lower_bias."""
        return self.upper_bias if self.lower_bias is None else self.upper_bias - self.lower_bias


Relaxations = Mapping[int, LinearRelaxation]  # by activation node


def relax(activation: Activation, low: Tensor, high: Tensor, kind: RelaxationKind) -> LinearRelaxation:
    """The linear relaxation of an activation over [low, high].

    parallel: both lines have one slope (Eq. 3.4 for ReLU, Eq. 3.5 for sigmoid and tanh). adaptive: the lower line of a
    ReLU is the piece on the longer side of zero, which leaves the smaller area (CROWN); others as parallel. tight: as
    adaptive, but for sigmoid and tanh the chord wherever it is a bound.
    """
    if activation.name == "relu":
        chord = relu(low, high, activation.slope[0])
        if kind == "parallel":
            return chord
        slope = torch.where(high > -low, torch.ones_like(high), torch.full_like(high, activation.slope[0]))
        return LinearRelaxation(slope, None, chord.upper_slope, chord.upper_bias)
    return s_curve(activation, low, high, chords=kind == "tight")


def relu(low: Tensor, high: Tensor, leak: float = 0.0) -> LinearRelaxation:
    """max(x, leak x): the upper line is the chord, the lower its parallel through the origin."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    width = high - low
    positive = width > 0
    slope = (high - leak * low) / torch.where(positive, width, 1)
    slope = torch.where(positive, slope, leak)
    return LinearRelaxation(slope, None, slope, (1 - slope) * high)


def s_curve(activation: Activation, low: Tensor, high: Tensor, *, chords: bool) -> LinearRelaxation:
    """Sigmoid or tanh between two lines with the slope d of the chord (Eq. 3.5, table 3.1).

    If the interval is on one side of zero, one line is the chord and the other a tangent on that side. Else both are
    tangents, at t_1 < 0 < t_2; with `chords`, the chord replaces a tangent whose point is outside the interval.
    """
    curve = activation.function
    at_low, at_high = curve(low), curve(high)
    width = high - low
    narrow = width < 1e-3  # the difference quotient would be inaccurate
    chord = (at_high - at_low) / torch.where(narrow, 1, width)
    flat = narrow | (chord < FLAT)
    slope = torch.where(flat, 0.5, chord).clamp(max=activation.slope[1] * (1 - 1e-6))
    point, value = _tangent_point(activation, slope)
    at_zero = curve(torch.zeros_like(low))  # the curve is symmetric about (0, at_zero)
    low_bias = at_low - slope * low
    upper_bias, lower_bias = value - slope * point, 2 * at_zero - value + slope * point
    # the outer one of the chord's biases at both ends, because its slope was rounded
    high_bias = at_high - slope * high
    outer_above, outer_below = torch.maximum(low_bias, high_bias), torch.minimum(low_bias, high_bias)
    chord_above = (high <= point) if chords else (high <= 0)
    chord_below = (low >= -point) if chords else (low >= 0)
    upper_bias = torch.where(chord_above, outer_above, upper_bias)
    lower_bias = torch.where(chord_below, outer_below, lower_bias)
    slope = torch.where(flat, 0.0, slope)
    pad = 8 * torch.finfo(low.dtype).eps  # the rounding error of the curve and the biases
    lower_bias, upper_bias = torch.where(flat, at_low, lower_bias) - pad, torch.where(flat, at_high, upper_bias) + pad
    return LinearRelaxation(slope, lower_bias, slope, upper_bias)


def _tangent_point(activation: Activation, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The x > 0 at which the curve has that slope, and the curve's value there."""
    if activation.name == "tanh":
        value = (1 - slope).sqrt()
        return torch.atanh(value), value
    value = (1 + (1 - 4 * slope).sqrt()) / 2
    return torch.logit(value), value
