"""The layers that can be bounded: how each propagates intervals forward and linear forms backward.

Affine layers are here, layers of several inputs in certifiers/joins.py, activations in certifiers/activations.py.
certifiers/operations.py maps torch's operations to layers.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from certifiers.linear_forms import DenseForms, Kernel, LinearForms, Pair

# A product with many rows adds blocks of products, one with a single row several sums side by side. The errors that
# were seen correspond to blocks of 250 and to 67 sums.
BLOCK, LANES = 256, 16
Interval = tuple[Tensor, Tensor]  # centre and radius, (B|1,*shape) each: all values within the radius of the centre


class Affine(ABC):
    """A layer W z + b of one input.

    terms: number of products that are summed for one output. in_sequence: how many of them are added one after another,
    at most, before sums are added to sums.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.terms = math.prod(weight.shape[1:]) + 1

    @property
    def in_sequence(self) -> int:
        return self.terms

    @abstractmethod
    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the layer with another weight and bias to z (B|1,*shape)."""

    @abstractmethod
    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        """Convert forms of the output to forms of the input, with `shape`, and the constants (B|1,T) that b adds."""

    @cached_property
    @torch.enable_grad()
    def absolute(self) -> Tensor:
        # enable_grad: it is cached, and a later use may need a gradient
        return self.weight.abs()

    def interval(self, center: Tensor, radius: Tensor) -> Interval:
        """The interval of W z + b for z in an interval (thesis, Eq. 3.8)."""
        return self.apply(center, self.weight, self.bias), self.apply(radius, self.absolute)

    def magnitude(self, size: Tensor) -> Tensor:
        """The largest possible |W z + b| if |z| is at most `size`, (B|1,*shape) each."""
        return self.apply(size, self.absolute, None if self.bias is None else self.bias.abs())

    def variance(self, variance: Tensor) -> Tensor:
        """The variance of W z for independent z of this variance, (B|1,*shape) each."""
        return self.apply(variance, self.weight.square())


class Linear(Affine):
    @property
    def in_sequence(self) -> int:
        return min(self.terms, BLOCK + self.terms // LANES)

    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(z, weight, bias)

    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        constant = 0.0 if self.bias is None else forms.dot(self.bias[None])
        return forms.dense().linear_backward(self.weight), constant


class Conv(Affine):
    """A convolution, or average pooling as a convolution."""

    def __init__(self, kernel: Kernel, bias: Tensor | None) -> None:
        super().__init__(kernel.weight, bias)
        self.kernel = kernel

    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel = self.kernel
        return F.conv2d(z, weight, bias, kernel.stride, kernel.padding, kernel.dilation, kernel.groups)

    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        constant = 0.0 if self.bias is None else forms.dot(self.bias[None, :, None, None].expand(1, *forms.shape))
        return forms.conv_backward(self.kernel, shape), constant


class TransposedConv(Affine):
    """A transposed convolution; `kernel`, with weight (C,O/groups,h,w), is that of the convolution it transposes."""

    def __init__(self, kernel: Kernel, bias: Tensor | None, output_padding: Pair) -> None:
        super().__init__(kernel.weight, bias)
        self.kernel, self.output_padding = kernel, output_padding
        self.terms = math.prod(kernel.weight.shape[2:]) * (len(kernel.weight) // kernel.groups) + 1

    def apply(self, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel = self.kernel
        return F.conv_transpose2d(
            z, weight, bias, kernel.stride, kernel.padding, self.output_padding, kernel.groups, kernel.dilation
        )

    def backward(self, forms: LinearForms, shape: tuple[int, ...]) -> tuple[LinearForms, Tensor | float]:
        constant = 0.0 if self.bias is None else forms.dot(self.bias[None, :, None, None].expand(1, *forms.shape))
        kernel, dense = self.kernel, forms.dense()
        images = dense.coefficients.flatten(0, 1)
        inputs = F.conv2d(images, kernel.weight, None, kernel.stride, kernel.padding, kernel.dilation, kernel.groups)
        inputs = inputs[..., : shape[1], : shape[2]]
        return DenseForms(inputs.unflatten(0, dense.coefficients.shape[:2])), constant


class Scale(Affine):
    """weight z + bias, where both broadcast against (1,*shape), for example a normalisation."""

    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.terms = 2

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


def select(channels: int, offset: Pair, size: Pair, stride: Pair, padding: Pair, dilation: Pair, like: Tensor) -> Conv:
    """Select the entry at `offset` of each window of this size; 0 if it is beyond the border."""
    weight = like.new_zeros(channels, 1, *size)
    weight[:, :, offset[0], offset[1]] = 1
    return Conv(Kernel(weight, stride, padding, dilation, channels), None)


def average(channels: int, size: Pair, stride: Pair, padding: Pair, like: Tensor) -> Conv:
    """The mean over each window; zeros beyond the border are counted."""
    weight = like.new_full((channels, 1, *size), 1 / math.prod(size))
    return Conv(Kernel(weight, stride, padding, (1, 1), channels), None)
