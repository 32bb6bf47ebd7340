"""The layers that can be bounded: how each propagates intervals forward and linear forms backward."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.errors import UserError
from certifiers.linear_forms import Kernel, LinearForms, Pair

Interval = tuple[Tensor, Tensor]  # centre and radius, (B|1,*shape) each: all values within the radius of the centre


class Affine(ABC):
    """A layer W z + b of one input. terms: how many products are summed for one output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.terms = math.prod(weight.shape[1:]) + 1

    @abstractmethod
    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer with another weight and bias, at z (B|1,*shape)."""

    @abstractmethod
    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        """Forms of the output as forms of the input, which has `shape`, and the constants (B|1,T) that b adds."""

    @cached_property
    @torch.enable_grad()
    def absolute(self) -> Tensor:
        # enable_grad: it is cached, and a later use may need a gradient
        return self.weight.abs()

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        """The interval of W z + b for z in an interval (Eq. 3.8)."""
        return self.apply(center, self.weight, self.bias), self.apply(radius, self.absolute)

    def magnitude(self, size: Tensor) -> Tensor:
        """The largest possible |W z + b| if |z| is at most `size`, (B|1,*shape) each."""
        return self.apply(size, self.absolute, None if self.bias is None else self.bias.abs())

    def variance(self, variance: Tensor) -> Tensor:
        """The variance of W z for independent z of this variance, (B|1,*shape) each."""
        return self.apply(variance, self.weight.square())


class Linear(Affine):
    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(z, weight, bias)

    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        constant = 0.0 if self.bias is None else forms.dot(self.bias[None])
        return forms.dense().linear_backward(self.weight), constant


class Conv(Affine):
    """A convolution, or average pooling, which is one."""

    def __init__(self, kernel: Kernel, bias: Tensor | None) -> None:
        super().__init__(kernel.weight, bias)
        self.kernel = kernel

    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel = self.kernel
        return F.conv2d(z, weight, bias, kernel.stride, kernel.padding, kernel.dilation, kernel.groups)

    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        constant = 0.0 if self.bias is None else forms.dot(self.bias[None, :, None, None].expand(1, *forms.shape))
        return forms.conv_backward(self.kernel, shape), constant


class Scale(Affine):
    """weight z + bias for each channel: a normalisation."""

    bias: Tensor

    @property
    def absolute(self) -> Tensor:  # not cached, so that gradients are summed in the order of the layers
        return self.weight.abs()

    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return z * weight if bias is None else z * weight + bias

    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        return forms.scaled(self.weight.expand(1, *shape)), forms.dot(self.bias.expand(1, *shape))


class Reshape(Affine):
    """The same values in another shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(torch.ones(()), None)
        self.shape, self.terms = shape, 0

    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return z.reshape(-1, *self.shape)

    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        return forms.dense().reshaped(shape), 0.0


class Add:
    """The sum of two inputs of one shape."""


@dataclass(frozen=True)
class Activation:
    """A non-decreasing elementwise function. slope: the least and the greatest value of its derivative."""

    name: str
    function: Callable[[Tensor], Tensor]
    slope: tuple[float, float]

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        low, high = center - radius, center + radius
        if self.function is F.relu:  # in place, because memory traffic dominates the time of interval bounds
            low, high = low.relu_(), high.relu_()
        else:
            low, high = self.function(low), self.function(high)
        center = torch.lerp(low, high, 0.5)
        return center, center - low


Layer = Affine | Add | Activation
SIGMOID = Activation("sigmoid", torch.sigmoid, (0.0, 0.25))
TANH = Activation("tanh", torch.tanh, (0.0, 1.0))


def linear(module: nn.Linear, like: Tensor) -> Linear:
    if like.dim() != 1:
        raise UserError(f"it is applied to the last axis of {tuple(like.shape)}; put a Flatten before it")
    return Linear(module.weight, module.bias)


def conv(module: nn.Conv2d) -> Conv:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise UserError(f"its padding is {module.padding_mode}, {module.padding}; use zeros and a padding in numbers")
    kernel = Kernel(module.weight, _pair(module.stride), _pair(module.padding), _pair(module.dilation), module.groups)
    return Conv(kernel, module.bias)


def average_pool(module: nn.AvgPool2d, like: Tensor) -> Conv:
    size, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    if module.ceil_mode or module.divisor_override or (padding != (0, 0) and not module.count_include_pad):
        raise UserError(
            "average pooling is supported without ceil_mode and divisor_override and with count_include_pad only"
        )
    return _average(size, stride, padding, like)


def global_pool(module: nn.AdaptiveAvgPool2d, like: Tensor) -> Conv:
    if _pair(module.output_size) != (1, 1):
        raise UserError(f"its output size is {module.output_size}; only 1 is supported")
    size = (like.shape[1], like.shape[2])
    return _average(size, size, (0, 0), like)


def _average(size: Pair, stride: Pair, padding: Pair, like: Tensor) -> Conv:
    weight = like.new_full((len(like), 1, *size), 1 / math.prod(size))
    return Conv(Kernel(weight, stride, padding, (1, 1), len(like)), None)


def batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, like: Tensor) -> Scale:
    """With the running statistics, as in eval mode."""
    if module.running_mean is None or module.running_var is None:
        raise UserError("it has no running statistics; set track_running_stats=True")
    factor = (module.running_var + module.eps).rsqrt()
    factor = factor if module.weight is None else factor * module.weight
    shift = -module.running_mean * factor
    shift = shift if module.bias is None else shift + module.bias
    shape = (-1, *[1] * (like.dim() - 1))
    return Scale(factor.reshape(shape), shift.reshape(shape))


def relu(slope: float = 0.0) -> Activation:
    if not 0 <= slope <= 1:
        raise UserError(f"its negative slope is {slope}; it must be in [0, 1]")
    function = F.relu if slope == 0 else lambda x: F.leaky_relu(x, slope)
    return Activation("relu", function, (slope, 1.0))


def _pair(value: int | tuple[int | None, ...] | None) -> Pair:
    height, width = (value, value) if isinstance(value, int) or value is None else value
    if height is None or width is None:
        raise UserError("a size of None is not supported; use numbers")
    return height, width
