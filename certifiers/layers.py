"""What a layer does to intervals that come in, and to rows that are pulled back through it.

An interval is a centre and a radius, (B|1,*shape) each: every value lies within the radius of the centre.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.layers import Normalize
from certifiers.linear_forms import Pair, Rows, Window

Interval = tuple[Tensor, Tensor]


class Affine(ABC):
    """A layer W z + b of one input."""

    @abstractmethod
    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        """Of W z + b for the z in an interval (Eq. 3.8)."""

    @abstractmethod
    def back(self, rows: Rows, shape: tuple[int, ...]) -> tuple[Rows, Tensor | float]:
        """Rows of the output as rows of the input, which has `shape`, and the constants (B|1,T) that b adds."""

    @abstractmethod
    def magnitude(self, size: Tensor) -> Tensor:
        """The greatest that |W z + b| can be, where |z| is at most `size`, (B|1,*shape) each."""

    @abstractmethod
    def variance(self, variance: Tensor) -> Tensor:
        """Of W z, where the z are independent and have this variance, (B|1,*shape) each."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """How many products are summed for one output."""


class Linear(Affine):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    @cached_property
    @torch.enable_grad()
    def absolute(self) -> Tensor:
        # kept for later uses, which may need a gradient where the first did not
        return self.weight.abs()

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        return F.linear(center, self.weight, self.bias), F.linear(radius, self.absolute)

    def back(self, rows: Rows, shape: tuple[int, ...]) -> tuple[Rows, Tensor | float]:
        constant = 0.0 if self.bias is None else rows.dot(self.bias[None])
        return rows.dense().through_linear(self.weight), constant

    def magnitude(self, size: Tensor) -> Tensor:
        return F.linear(size, self.absolute, None if self.bias is None else self.bias.abs())

    def variance(self, variance: Tensor) -> Tensor:
        return F.linear(variance, self.weight.square())

    @property
    def terms(self) -> int:
        return self.weight.shape[1] + 1


class Conv(Affine):
    """A convolution, or average pooling, which is one."""

    def __init__(self, window: Window, bias: Tensor | None) -> None:
        self.window, self.bias = window, bias

    @cached_property
    @torch.enable_grad()
    def absolute(self) -> Tensor:
        # kept for later uses, which may need a gradient where the first did not
        return self.window.weight.abs()

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        return self._convolve(center, self.window.weight, self.bias), self._convolve(radius, self.absolute, None)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        window = self.window
        return F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation, window.groups)

    def back(self, rows: Rows, shape: tuple[int, ...]) -> tuple[Rows, Tensor | float]:
        constant = 0.0 if self.bias is None else rows.dot(self.bias[None, :, None, None].expand(1, *rows.shape))
        return rows.through_conv(self.window, shape), constant

    def magnitude(self, size: Tensor) -> Tensor:
        return self._convolve(size, self.absolute, None if self.bias is None else self.bias.abs())

    def variance(self, variance: Tensor) -> Tensor:
        return self._convolve(variance, self.window.weight.square(), None)

    @property
    def terms(self) -> int:
        return math.prod(self.window.weight.shape[1:]) + 1


class Scale(Affine):
    """factor z + shift for each channel: a normalisation."""

    def __init__(self, factor: Tensor, shift: Tensor) -> None:
        self.factor, self.shift = factor, shift

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        return center * self.factor + self.shift, radius * self.factor.abs()

    def back(self, rows: Rows, shape: tuple[int, ...]) -> tuple[Rows, Tensor | float]:
        return rows.times(self.factor.expand(1, *shape)), rows.dot(self.shift.expand(1, *shape))

    def magnitude(self, size: Tensor) -> Tensor:
        return size * self.factor.abs() + self.shift.abs()

    def variance(self, variance: Tensor) -> Tensor:
        return variance * self.factor.square()

    @property
    def terms(self) -> int:
        return 2


class Reshape(Affine):
    """The same values in another shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        return center.reshape(-1, *self.shape), radius.reshape(-1, *self.shape)

    def back(self, rows: Rows, shape: tuple[int, ...]) -> tuple[Rows, Tensor | float]:
        return rows.dense().reshaped(shape), 0.0

    def magnitude(self, size: Tensor) -> Tensor:
        return size.reshape(-1, *self.shape)

    def variance(self, variance: Tensor) -> Tensor:
        return variance.reshape(-1, *self.shape)

    @property
    def terms(self) -> int:
        return 0


class Add:
    """The sum of two inputs of one shape."""


@dataclass(frozen=True)
class Activation:
    """A function of each unit that never falls. slope: the least and the greatest of its derivative."""

    name: str
    function: Callable[[Tensor], Tensor]
    slope: tuple[float, float]

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        low, high = center - radius, center + radius
        if self.function is F.relu:  # in place: intervals are as dear as the memory that they touch
            low, high = low.relu_(), high.relu_()
        else:
            low, high = self.function(low), self.function(high)
        center = torch.lerp(low, high, 0.5)
        return center, center - low


Layer = Affine | Add | Activation


def linear(module: nn.Linear, like: Tensor) -> Linear:
    if like.dim() != 1:
        raise UserError(f"it is applied to the last axis of {tuple(like.shape)}; put a Flatten before it")
    return Linear(module.weight, module.bias)


def conv(module: nn.Conv2d) -> Conv:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise UserError(f"its padding is {module.padding_mode}, {module.padding}; it must be zeros, in numbers")
    window = Window(module.weight, _pair(module.stride), _pair(module.padding), _pair(module.dilation), module.groups)
    return Conv(window, module.bias)


def average_pool(module: nn.AvgPool2d, like: Tensor) -> Conv:
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    if module.ceil_mode or module.divisor_override or (padding != (0, 0) and not module.count_include_pad):
        raise UserError("only average pooling with plain means is bounded; leave its options at their defaults")
    return _mean_over(kernel, stride, padding, like)


def global_pool(module: nn.AdaptiveAvgPool2d, like: Tensor) -> Conv:
    if _pair(module.output_size) != (1, 1):
        raise UserError(f"its output size is {module.output_size}; only 1 is bounded")
    whole = (like.shape[1], like.shape[2])
    return _mean_over(whole, whole, (0, 0), like)


def _mean_over(kernel: Pair, stride: Pair, padding: Pair, like: Tensor) -> Conv:
    weight = like.new_full((len(like), 1, *kernel), 1 / math.prod(kernel))
    return Conv(Window(weight, stride, padding, (1, 1), len(like)), None)


def batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, like: Tensor) -> Scale:
    """With the running statistics, as in eval mode."""
    if module.running_mean is None or module.running_var is None:
        raise UserError("it keeps no running statistics")
    factor = (module.running_var + module.eps).rsqrt()
    factor = factor if module.weight is None else factor * module.weight
    shift = -module.running_mean * factor
    shift = shift if module.bias is None else shift + module.bias
    along = (-1, *[1] * (like.dim() - 1))
    return Scale(factor.reshape(along), shift.reshape(along))


def normalize(module: Normalize) -> Scale:
    return Scale(1 / module.std, -module.mean / module.std)


def relu(slope: float = 0.0) -> Activation:
    if not 0 <= slope <= 1:
        raise UserError(f"its negative slope is {slope}; it must be in [0, 1]")
    function = F.relu if slope == 0 else lambda x: F.leaky_relu(x, slope)
    return Activation("relu", function, (slope, 1.0))


def sigmoid() -> Activation:
    return Activation("sigmoid", torch.sigmoid, (0.0, 0.25))


def tanh() -> Activation:
    return Activation("tanh", torch.tanh, (0.0, 1.0))


def _pair(value: int | tuple[int | None, ...] | None) -> Pair:
    high, wide = (value, value) if isinstance(value, int) or value is None else value
    if high is None or wide is None:
        raise UserError("a size of None is not bounded; give numbers")
    return high, wide
