"""Two lines between which an activation lies, wherever its input is in [low, high].

    low_slope x + low_shift <= phi(x) <= up_slope x + up_shift

All are differentiable in the interval, so that a network can be trained through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from certifiers.layers import Activation

Relaxation = Literal["parallel", "adaptive", "tight"]
FLAT = 0.01  # a chord of an S-curve that is flatter is replaced by two constants: its tangent points are too far out


@dataclass(frozen=True)
class Lines:
    """Four tensors like the interval. Parallel lines share one slope; low_shift None: a line through (0, 0)."""

    low_slope: Tensor
    low_shift: Tensor | None
    up_slope: Tensor
    up_shift: Tensor

    @property
    def parallel(self) -> bool:
        return self.low_slope is self.up_slope

    def of(self, rows: Tensor) -> Lines:
        """Of some of the examples."""
        slope = self.up_slope[rows]
        return Lines(
            slope if self.parallel else self.low_slope[rows],
            None if self.low_shift is None else self.low_shift[rows],
            slope,
            self.up_shift[rows],
        )

    @property
    def gap(self) -> Tensor:
        """up_shift - low_shift."""
        return self.up_shift if self.low_shift is None else self.up_shift - self.low_shift


def relax(activation: Activation, low: Tensor, high: Tensor, relaxation: Relaxation) -> Lines:
    """The lines of an activation over [low, high].

    parallel: one slope for both (Eq. 3.4 for ReLU, Eq. 3.5 for sigmoid and tanh). adaptive: for ReLU, the lower line is
    that of the two pieces which leaves the smaller area (CROWN); else parallel. tight: adaptive, and for sigmoid and
    tanh the chord itself wherever it is a bound.
    """
    if activation.name == "relu":
        lines = relu(low, high, activation.slope[0])
        return lines if relaxation == "parallel" else with_lower(lines, adaptive_slope(low, high, activation.slope[0]))
    return s_curve(activation, low, high, chords=relaxation == "tight")


def relu(low: Tensor, high: Tensor, leak: float = 0.0) -> Lines:
    """max(x, leak x): above it the chord, below it the parallel of the chord through the origin."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    width = high - low
    wide = width > 0
    slope = (high - leak * low) / torch.where(wide, width, 1)
    slope = torch.where(wide, slope, leak)
    return Lines(slope, None, slope, (1 - slope) * high)


def adaptive_slope(low: Tensor, high: Tensor, leak: float = 0.0) -> Tensor:
    """1 where more than half of the interval is positive, else the other piece's slope."""
    return torch.where(high > -low, torch.ones_like(high), torch.full_like(high, leak))


def with_lower(lines: Lines, slope: Tensor) -> Lines:
    """ReLU's lines with another lower one through the origin, of a slope between the two pieces'."""
    return Lines(slope, None, lines.up_slope, lines.up_shift)


def s_curve(activation: Activation, low: Tensor, high: Tensor, *, chords: bool) -> Lines:
    """Sigmoid or tanh between two lines with the slope d of the chord (Eq. 3.5, table 3.1).

    Where the interval is on one side of zero, one line is the chord and the other touches the curve on that side. Else
    both touch it, at t_1 < 0 < t_2; with `chords`, the chord takes the place of a line whose point of touch is outside.
    """
    curve = activation.function
    at_low, at_high = curve(low), curve(high)
    width = high - low
    narrow = width < 1e-3  # there the difference quotient loses its digits
    chord = (at_high - at_low) / torch.where(narrow, 1, width)
    flat = narrow | (chord < FLAT)
    slope = torch.where(flat, 0.5, chord).clamp(max=activation.slope[1] * (1 - 1e-6))
    point, value = _touch(activation, slope)
    bend = curve(torch.zeros_like(low))  # the curve is symmetric about (0, bend)
    chord_shift = at_low - slope * low
    up_shift, low_shift = value - slope * point, 2 * bend - value + slope * point
    # the chord's shifts at both ends: the outer one, for the slope was rounded
    other_shift = at_high - slope * high
    over, under = torch.maximum(chord_shift, other_shift), torch.minimum(chord_shift, other_shift)
    chord_above = (high <= point) if chords else (high <= 0)
    chord_below = (low >= -point) if chords else (low >= 0)
    up_shift = torch.where(chord_above, over, up_shift)
    low_shift = torch.where(chord_below, under, low_shift)
    slope = torch.where(flat, 0.0, slope)
    pad = 8 * torch.finfo(low.dtype).eps  # of rounding, in the curve and in the shifts
    return Lines(slope, torch.where(flat, at_low, low_shift) - pad, slope, torch.where(flat, at_high, up_shift) + pad)


def _touch(activation: Activation, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Where, right of zero, the curve has that slope, and its value there."""
    if activation.name == "tanh":
        value = (1 - slope).sqrt()
        return torch.atanh(value), value
    value = (1 + (1 - 4 * slope).sqrt()) / 2
    return torch.logit(value), value
