"""The supported elementwise functions: their interval bounds and linear relaxations."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.proof_format import TIE
from certifiers.curves import enclosing_lines, s_curve_lines
from certifiers.layers import Interval
from certifiers.relaxations import LinearRelaxation, RelaxationKind

FLAT = 0.01  # below this slope of an S-curve's chord the lines are constants: the tangent points are too far out


@dataclass(frozen=True)
class Activation(ABC):
    """An elementwise function of one input. slope: the smallest and the largest value of its derivative."""

    name: str
    function: Callable[[Tensor], Tensor]
    slope: tuple[float, float]

    @property
    def steepest(self) -> float:
        """The Lipschitz constant."""
        return max(map(abs, self.slope))

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The minimum and the maximum over [low, high]; by default the values at its ends (function not decreasing)."""
        return self.function(low), self.function(high)

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        low, high = self.image(center - radius, center + radius)
        center = torch.lerp(low, high, 0.5)
        return center, center - low

    def magnitude(self, size: Tensor) -> Tensor:
        """The largest possible |phi(z)| if |z| is at most `size`."""
        low, high = self.image(-size, size)
        return torch.maximum(low.abs(), high.abs())

    def unstable(self, low: Tensor, high: Tensor) -> Tensor:
        """Where the function is not linear over [low, high], so that its relaxation depends on the ends, bool."""
        return torch.ones_like(low, dtype=torch.bool)

    @abstractmethod
    def relax(self, low: Tensor, high: Tensor, kind: RelaxationKind) -> LinearRelaxation:
        """The linear relaxation over [low, high].

        parallel: both lines have one slope (thesis, Eq. 3.4 for ReLU, Eq. 3.5 for sigmoid and tanh). adaptive: the line
        of a ReLU that passes through the origin is the piece on the longer side of zero, which leaves the smaller area
        (CROWN); sigmoid and tanh as with parallel; for other curves each line has its own slope, the candidate with the
        smallest area. tight: as adaptive, but sigmoid and tanh use the chord wherever it is a bound. crown: as
        adaptive, but for sigmoid and tanh each line has its own slope, as in CROWN (s_curve_lines).
        """


@dataclass(frozen=True)
class Rectifier(Activation):
    """x where x > 0, leak x elsewhere: ReLU, leaky ReLU, PReLU and, with a leak of -1, the absolute value.

    leak: a number in [0, 1], or a tensor with one (arbitrary) number per unit, which broadcasts against (1,*shape).
    """

    leak: float | Tensor = 0.0

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.leak, Tensor):
            least, most = self.function(low), self.function(high)
            falling = self.leak < 0
            bottom = torch.where(falling & (low <= 0) & (high >= 0), torch.zeros_like(low), torch.minimum(least, most))
            return torch.where(falling, bottom, least), torch.where(falling, torch.maximum(least, most), most)
        return self.function(low), self.function(high)

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        if self.function is not F.relu:
            return super().interval(center, radius)
        # in place, because memory traffic dominates the time of interval bounds
        low, high = (center - radius).relu_(), (center + radius).relu_()
        center = torch.lerp(low, high, 0.5)
        return center, center - low

    def unstable(self, low: Tensor, high: Tensor) -> Tensor:
        return (low < 0) & (high > 0)

    def relax(self, low: Tensor, high: Tensor, kind: RelaxationKind) -> LinearRelaxation:
        """The chord, and a line through the origin on the other side of the kink: by default the chord's parallel."""
        low, high = low.clamp(max=0), high.clamp(min=0)
        width = high - low
        positive = width > 0
        slope = (high - self.leak * low) / torch.where(positive, width, 1)
        slope = torch.where(positive, slope, self.leak)
        bias = (1 - slope) * high
        through = slope
        if kind != "parallel":
            through = torch.where(steep(low, high), torch.ones_like(high), torch.zeros_like(high) + self.leak)
        if isinstance(self.leak, Tensor) and bool((self.leak > 1).any()):
            convex = self.leak <= 1
            below, above = torch.where(convex, through, slope), torch.where(convex, slope, through)
            zero = torch.zeros_like(bias)
            if kind == "parallel":
                above = below
            return LinearRelaxation(below, torch.where(convex, zero, bias), above, torch.where(convex, bias, zero))
        return LinearRelaxation(through, None, slope, bias)


def steep(low: Tensor, high: Tensor) -> Tensor:
    """Whether the line through the origin has the slope of the piece above zero, by the rule "adaptive" of proofs."""
    return high > -low * (1 + TIE)


@dataclass(frozen=True)
class SCurve(Activation):
    """Sigmoid or tanh."""

    def relax(self, low: Tensor, high: Tensor, kind: RelaxationKind) -> LinearRelaxation:
        """Two lines with the slope d of the chord (thesis, Eq. 3.5, Table 3.1).

        If the interval is on one side of zero, one line is the chord and the other a tangent on that side. Else both
        are tangents, at t_1 < 0 < t_2; if `tight`, the chord replaces a tangent whose point is outside the interval.
        `crown`: see s_curve_lines.
        """
        if kind == "crown":
            middle = 0.0 if self.name == "tanh" else 0.5
            return s_curve_lines(self.function, self._derivative, low, high, middle=middle)
        curve, chords = self.function, kind == "tight"
        at_low, at_high = curve(low), curve(high)
        width = high - low
        narrow = width < 1e-3  # the difference quotient would be inaccurate
        chord = (at_high - at_low) / torch.where(narrow, 1, width)
        flat = narrow | (chord < FLAT)
        slope = torch.where(flat, 0.5, chord).clamp(max=self.slope[1] * (1 - 1e-6))
        point, value = self._tangent_point(slope)
        at_zero = curve(torch.zeros_like(low))  # the curve is symmetric about (0, at_zero)
        low_bias = at_low - slope * low
        upper_bias, lower_bias = value - slope * point, 2 * at_zero - value + slope * point
        # the outer one of the two biases at the ends of the chord, because its slope is rounded
        high_bias = at_high - slope * high
        outer_above, outer_below = torch.maximum(low_bias, high_bias), torch.minimum(low_bias, high_bias)
        chord_above = (high <= point) if chords else (high <= 0)
        chord_below = (low >= -point) if chords else (low >= 0)
        upper_bias = torch.where(chord_above, outer_above, upper_bias)
        lower_bias = torch.where(chord_below, outer_below, lower_bias)
        slope = torch.where(flat, 0.0, slope)
        pad = 8 * torch.finfo(low.dtype).eps  # the rounding error of the curve and the biases
        lower_bias = torch.where(flat, at_low, lower_bias) - pad
        upper_bias = torch.where(flat, at_high, upper_bias) + pad
        return LinearRelaxation(slope, lower_bias, slope, upper_bias)

    def _derivative(self, x: Tensor) -> Tensor:
        value = self.function(x)
        return 1 - value.square() if self.name == "tanh" else value * (1 - value)

    def _tangent_point(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The x > 0 at which the curve has that slope, and the curve's value there."""
        if self.name == "tanh":
            value = (1 - slope).sqrt()
            return torch.atanh(value), value
        value = (1 + (1 - 4 * slope).sqrt()) / 2
        return torch.logit(value), value


@dataclass(frozen=True)
class Curve(Activation):
    """A function that falls to the left of `lowest` and rises to its right, or only rises (-inf).

    breaks: the points at which its derivative changes between rising and falling, or jumps. error: an upper bound of
    the difference between this function and the one that torch computes.
    """

    derivative: Callable[[Tensor], Tensor]
    breaks: tuple[float, ...] = ()
    lowest: float = -math.inf
    error: float = 0.0

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least = self.function(low.clamp(min=self.lowest).minimum(high) if math.isfinite(self.lowest) else low)
        most = (
            torch.maximum(self.function(low), self.function(high))
            if math.isfinite(self.lowest)
            else self.function(high)
        )
        return least - self.error, most + self.error

    def relax(self, low: Tensor, high: Tensor, kind: RelaxationKind) -> LinearRelaxation:
        return enclosing_lines(
            self.function, self.derivative, self.breaks, low, high, parallel=kind == "parallel", error=self.error
        )


RELU = Rectifier("relu", F.relu, (0.0, 1.0))
SIGMOID = SCurve("sigmoid", torch.sigmoid, (0.0, 0.25))
TANH = SCurve("tanh", torch.tanh, (0.0, 1.0))
ABS = Rectifier("abs", torch.abs, (-1.0, 1.0), torch.tensor(-1.0))


def leaky_relu(leak: float) -> Rectifier:
    """Leaky ReLU with a negative slope in [0, 1], as fast-lin and mixed-integer programs need it."""
    return Rectifier("relu", lambda x: F.leaky_relu(x, leak), (leak, 1.0), leak) if leak else RELU


def prelu(leak: Tensor) -> Rectifier:
    """PReLU. leak: broadcasts against (1,*shape)."""
    extremes = leak.detach().amin().item(), leak.detach().amax().item()
    function = lambda x: torch.where(x > 0, x, leak.to(x) * x)  # noqa: E731 -- a closure, as the others are functions
    return Rectifier("relu", function, (min(1.0, extremes[0]), max(1.0, extremes[1])), leak)


def gelu(approximate: str) -> Curve:
    """x P(N(0,1) <= x), or its approximation by tanh."""
    if approximate == "none":
        return Curve(
            "gelu", F.gelu, (-0.1289042, 1.1289042), _gelu_slope, breaks=(-math.sqrt(2), math.sqrt(2)),
            lowest=-0.7517915246935645,
        )  # fmt: skip
    inflection = 1.4185040087908283
    return Curve(
        "gelu-tanh", lambda x: F.gelu(x, approximate="tanh"), (-0.1289931, 1.1289931), _gelu_tanh_slope,
        breaks=(-inflection, inflection), lowest=-0.7524614220710163,
    )  # fmt: skip


def silu() -> Curve:
    """x sigmoid(x)."""
    inflection = 2.3993572805154675
    return Curve(
        "silu",
        F.silu,
        (-0.0998394, 1.0998394),
        _silu_slope,
        breaks=(-inflection, inflection),
        lowest=-1.278464542761074,
    )


def softplus(beta: float, threshold: float) -> Curve:
    """log(1 + exp(beta x)) / beta; torch returns x where beta x > threshold, which is too low by at most `error`."""
    error = math.log1p(math.exp(-threshold)) / beta
    return Curve(
        "softplus", lambda x: F.softplus(x, beta, threshold), (0.0, 1.0), lambda x: torch.sigmoid(beta * x), error=error
    )


def elu(alpha: float, scale: float, input_scale: float) -> Curve:
    """scale x where x > 0, scale alpha (exp(input_scale x) - 1) elsewhere; all numbers positive."""
    at_zero = scale * alpha * input_scale

    def function(x: Tensor) -> Tensor:
        negative = scale * alpha * torch.expm1(input_scale * x.clamp(max=0))
        return torch.where(x > 0, scale * x, negative)

    def slope(x: Tensor) -> Tensor:
        return torch.where(x > 0, scale, at_zero * torch.exp(input_scale * x.clamp(max=0)))

    return Curve("elu", function, (0.0, max(scale, at_zero)), slope, breaks=(0.0,))


def _gelu_slope(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    factor, cubic = math.sqrt(2 / math.pi), 0.044715
    x = x.clamp(-30, 30)  # outside, it is constant, and x^3 would overflow
    t = torch.tanh(factor * (x + cubic * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t.square()) * factor * (1 + 3 * cubic * x.square())


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))
