"""Linear forms of a layer's output, which are propagated backward through a network layer by layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
FEW = 4  # up to this number of input channels torch's transposed convolution is slow on a CPU


@dataclass(frozen=True)
class Kernel:
    """A convolution with zero padding: weight (O,C/groups,kh,kw) and its geometry."""

    weight: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def window(self, axis: int, size: int, stride: int, padding: int) -> tuple[int, int, int]:
        """Convert a window (size, stride, padding) of the output into a window of the input."""
        step, extent = self.stride[axis], self.dilation[axis] * (self.weight.shape[2 + axis] - 1) + 1
        return (size - 1) * step + extent, stride * step, padding * step + self.padding[axis]


class LinearForms(ABC):
    """T linear forms for each of B examples, of a layer whose output has `shape` (C,H,W) or (F,).

    If the coefficients are the same for all examples (or windows), that axis has length 1.
    """

    shape: tuple[int, ...]
    coefficients: Tensor

    @abstractmethod
    def dot(self, values: Tensor) -> Tensor:
        """The forms at `values` (B|1,*shape): (B|1,T)."""

    @abstractmethod
    def with_coefficients(self, coefficients: Tensor) -> LinearForms:
        """The same forms with other coefficients, of the same or a broadcastable size."""

    @abstractmethod
    def align(self, values: Tensor) -> Tensor:
        """`values` (B|1,*shape), one per unit, in a size that multiplies the coefficients."""

    @abstractmethod
    def norm(self, order: float) -> Tensor:
        """The norm of each form's coefficients, (B|1,T)."""

    @abstractmethod
    def dense(self) -> DenseForms: ...

    @abstractmethod
    def of_units(self, units: Tensor) -> LinearForms:
        """Select `units` (B,T) int64 for each example from forms that are the same for all examples."""

    @abstractmethod
    def of_channels(self, start: int, stop: int) -> LinearForms:
        """The part of the forms that belongs to some channels (or units) of the layer."""

    @abstractmethod
    def conv_backward(self, kernel: Kernel, shape: tuple[int, ...]) -> LinearForms:
        """Propagate the forms backward through a convolution (without its bias) whose input has `shape`."""

    def scaled(self, values: Tensor) -> LinearForms:
        """The forms of units that are multiplied by `values` (B|1,*shape)."""
        return self.with_coefficients(self.coefficients * self.align(values))

    def negated(self) -> LinearForms:
        return self.with_coefficients(-self.coefficients)

    def negative_part(self) -> LinearForms:
        return self.with_coefficients(self.coefficients.clamp(max=0))

    def absolute(self) -> LinearForms:
        return self.with_coefficients(self.coefficients.abs())

    def plus(self, other: LinearForms) -> LinearForms:
        """The sum with other forms of the same layer."""
        a, b = self.dense(), other.dense()
        return a.with_coefficients(a.coefficients + b.coefficients)


class DenseForms(LinearForms):
    """Forms with a coefficient for every unit: coefficients (B|1,T,*shape)."""

    def __init__(self, coefficients: Tensor) -> None:
        self.coefficients = coefficients
        self.shape = tuple(coefficients.shape[2:])

    @property
    def flat(self) -> Tensor:
        return self.coefficients.flatten(2)

    def dot(self, values: Tensor) -> Tensor:
        flat = values.flatten(1)
        if len(self.coefficients) == 1:
            return flat @ self.flat[0].T
        return (self.flat @ flat[:, :, None]).squeeze(2)

    def with_coefficients(self, coefficients: Tensor) -> DenseForms:
        return DenseForms(coefficients)

    def align(self, values: Tensor) -> Tensor:
        return values if values.dim() == self.coefficients.dim() else values.unsqueeze(1)

    def norm(self, order: float) -> Tensor:
        return norm_of(self.flat, order)

    def dense(self) -> DenseForms:
        return self

    def of_units(self, units: Tensor) -> DenseForms:
        return DenseForms(F.embedding(units, self.flat[0]).unflatten(2, self.shape))

    def of_channels(self, start: int, stop: int) -> DenseForms:
        return DenseForms(self.coefficients[:, :, start:stop])

    def reshaped(self, shape: tuple[int, ...]) -> DenseForms:
        return DenseForms(self.coefficients.reshape(*self.coefficients.shape[:2], *shape))

    def linear_backward(self, weight: Tensor) -> DenseForms:
        """Propagate the forms backward through a linear layer (without its bias)."""
        product: Tensor = _Product.apply(self.coefficients.flatten(0, 1), weight)
        return DenseForms(product.unflatten(0, self.coefficients.shape[:2]))

    def conv_backward(self, kernel: Kernel, shape: tuple[int, ...]) -> DenseForms:
        images = self.coefficients.flatten(0, 1)
        inputs = transposed_conv(images, kernel, kernel.padding, shape[1:])
        return DenseForms(inputs.reshape(*self.coefficients.shape[:2], *shape))


class UnitForms(DenseForms):
    """Some units of a flat layer."""

    def __init__(self, size: int, units: range, like: Tensor) -> None:
        super().__init__(torch.eye(size, dtype=like.dtype, device=like.device)[None, units.start : units.stop])
        self.units = units

    def linear_backward(self, weight: Tensor) -> DenseForms:
        return DenseForms(weight[None, self.units.start : self.units.stop])


class _Product(torch.autograd.Function):
    """forms (R,F) @ weight. Its backward skips the forms without a gradient: a hinge loss needs few of them."""

    @staticmethod
    def forward(ctx: Any, forms: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(forms, weight)
        return forms @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        forms, weight = ctx.saved_tensors
        used = gradient.any(dim=1).nonzero().squeeze(1)
        gradient = gradient[used]
        return torch.zeros_like(forms).index_copy(0, used, gradient @ weight.T), forms[used].T @ gradient


def transposed_conv(images: Tensor, kernel: Kernel, padding: Pair, size: tuple[int, ...]) -> Tensor:
    """The transposed convolution of (N,O,H,W), as images of `size`: (N,C,*size)."""
    window = (kernel.weight.shape[2], kernel.weight.shape[3])
    if kernel.groups == 1 and kernel.weight.shape[1] <= FEW:
        columns = kernel.weight.flatten(1).T @ images.flatten(2)
        return F.fold(columns, size, window, kernel.dilation, padding, kernel.stride)
    inputs = F.conv_transpose2d(images, kernel.weight, None, kernel.stride, 0, 0, kernel.groups, kernel.dilation)
    # crop to `size`, or set the pixels that the convolution does not read to zero
    (top, left), (high, wide) = padding, inputs.shape[2:]
    return F.pad(inputs, (-left, size[1] + left - wide, -top, size[0] + top - high))


def margin_specification(y: Tensor, classes: int, like: Tensor) -> tuple[Tensor, DenseForms]:
    """The classes j other than the labels y (B,), in order, (B,K-1); the margins z_y - z_j as forms of the logits."""
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y[:, None])
    logits = torch.eye(classes, dtype=like.dtype, device=y.device)
    return others, DenseForms(logits[y][:, None] - logits[others])


def norm_of(values: Tensor, order: float) -> Tensor:
    """The norm over the last axis, without overflow or underflow of squares."""
    if order != 2:
        return torch.linalg.vector_norm(values, ord=order, dim=-1)
    largest = values.detach().abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    return torch.linalg.vector_norm(values / scale, dim=-1) * scale.squeeze(-1)
