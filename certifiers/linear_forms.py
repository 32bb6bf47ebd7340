"""Linear forms of a layer's output, which are propagated backward through a network layer by layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
FEW = 4  # up to so many input channels torch's transposed convolution is slow on a CPU


@dataclass(frozen=True)
class Kernel:
    """A convolution with zero padding: weight (O,C/groups,kh,kw) and its geometry."""

    weight: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def window(self, axis: int, size: int, stride: int, padding: int) -> tuple[int, int, int]:
        """A window (size, stride, padding) of the output as one of the input."""
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
    def of_channels(self, start: int, stop: int) -> LinearForms:
        """The part of the forms that belongs to some channels (or units) of the layer."""

    @abstractmethod
    def conv_backward(self, kernel: Kernel, shape: tuple[int, ...]) -> LinearForms:
        """Propagated backward through a convolution (without its bias) whose input has `shape`."""

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
        return torch.linalg.vector_norm(self.flat, ord=order, dim=2)

    def dense(self) -> DenseForms:
        return self

    def of_channels(self, start: int, stop: int) -> DenseForms:
        return DenseForms(self.coefficients[:, :, start:stop])

    def reshaped(self, shape: tuple[int, ...]) -> DenseForms:
        return DenseForms(self.coefficients.reshape(*self.coefficients.shape[:2], *shape))

    def linear_backward(self, weight: Tensor) -> DenseForms:
        """Propagated backward through a linear layer (without its bias)."""
        product: Tensor = _Product.apply(self.coefficients.flatten(0, 1), weight)
        return DenseForms(product.unflatten(0, self.coefficients.shape[:2]))

    def conv_backward(self, kernel: Kernel, shape: tuple[int, ...]) -> DenseForms:
        images = self.coefficients.flatten(0, 1)
        inputs = _transposed_conv(images, kernel, kernel.padding, shape[1:])
        return DenseForms(inputs.reshape(*self.coefficients.shape[:2], *shape))


class UnitForms(DenseForms):
    """Some units of a flat layer."""

    def __init__(self, size: int, units: range, like: Tensor) -> None:
        super().__init__(torch.eye(size, dtype=like.dtype, device=like.device)[None, units.start : units.stop])
        self.units = units

    def linear_backward(self, weight: Tensor) -> DenseForms:
        return DenseForms(weight[None, self.units.start : self.units.stop])


class PatchForms(LinearForms):
    """The units of a convolution's output (O,*grid), each with coefficients for its receptive field in the layer only.

    coefficients (B|1,P|1,O,C,kh,kw), P = number of positions of the grid. T = O x P, in the order of the flattened
    output. outside: coefficients beyond the image's border may differ from zero; they must be ignored.
    """

    def __init__(
        self, coefficients: Tensor, shape: tuple[int, ...], grid: Pair, stride: Pair, padding: Pair, *, outside: bool
    ) -> None:
        self.coefficients, self.shape, self.grid = coefficients, shape, grid
        self.stride, self.padding, self.outside = stride, padding, outside
        self.size, self.positions = (coefficients.shape[4], coefficients.shape[5]), grid[0] * grid[1]

    @cached_property
    def inside(self) -> Tensor:
        """1 if an entry of a window is within the image, else 0: (1,P,C,kh,kw)."""
        like = self.coefficients
        return self._windows(torch.ones((1, *self.shape), dtype=like.dtype, device=like.device))

    def masked(self) -> PatchForms:
        """With zeros beyond the border."""
        if not self.outside or self.padding == (0, 0):
            return self
        return self.with_coefficients(self.coefficients * self.inside.unsqueeze(2), outside=False)

    def dot(self, values: Tensor) -> Tensor:
        windows = self._windows(values).flatten(2)  # zero beyond the border, so that those coefficients do not count
        flat = self.coefficients.flatten(3)
        shared = flat.shape[:2] == (1, 1)
        products = windows @ flat[0, 0].T if shared else (flat @ windows[..., None]).squeeze(3)
        return products.transpose(1, 2).flatten(1)

    def with_coefficients(self, coefficients: Tensor, *, outside: bool | None = None) -> PatchForms:
        outside = self.outside if outside is None else outside
        return PatchForms(coefficients, self.shape, self.grid, self.stride, self.padding, outside=outside)

    def align(self, values: Tensor) -> Tensor:
        return self._windows(values).unsqueeze(2)

    def of_channels(self, start: int, stop: int) -> PatchForms:
        part, shape = self.coefficients[:, :, :, start:stop], (stop - start, *self.shape[1:])
        return PatchForms(part, shape, self.grid, self.stride, self.padding, outside=self.outside)

    def scaled(self, values: Tensor) -> PatchForms:
        return self.with_coefficients(self.coefficients * self.align(values), outside=False)

    def norm(self, order: float) -> Tensor:
        flat = self.masked().coefficients.flatten(3)
        norms = torch.linalg.vector_norm(flat, ord=order, dim=3)
        return norms.expand(-1, self.positions, -1).transpose(1, 2).flatten(1)

    def dense(self) -> DenseForms:
        (channels, height, width), (top, left), (high, wide) = self.shape, self.padding, self.size
        patches = self.masked().coefficients.expand(-1, self.positions, -1, -1, -1, -1).transpose(1, 2)
        forms = patches.reshape(len(patches), patches.shape[1] * self.positions, -1)
        padded_height, padded_width = height + 2 * top, width + 2 * left
        canvas = forms.new_zeros(*forms.shape[:2], channels * padded_height * padded_width)
        arange = partial(torch.arange, device=forms.device)
        # in the padded image, flattened: a window's first entry, and the others relative to it
        corner = (arange(self.grid[0]) * self.stride[0] * padded_width)[:, None] + arange(self.grid[1]) * self.stride[1]
        offset = (arange(channels) * padded_height * padded_width)[:, None, None]
        offset = offset + (arange(high) * padded_width)[:, None] + arange(wide)
        index = corner.flatten().repeat(patches.shape[1])[:, None] + offset.flatten()
        canvas = canvas.scatter(2, index.expand(len(forms), -1, -1), forms)
        canvas = canvas.unflatten(2, (channels, padded_height, padded_width))
        return DenseForms(canvas[..., top : top + height, left : left + width])

    def conv_backward(self, kernel: Kernel, shape: tuple[int, ...]) -> LinearForms:
        windows = [kernel.window(axis, self.size[axis], self.stride[axis], self.padding[axis]) for axis in (0, 1)]
        (high, down, top), (wide, across, left) = windows
        if high * wide >= shape[1] * shape[2]:
            return self.dense().conv_backward(kernel, shape)
        # on one window the transposed convolution is a small matrix, through which all windows go at once: ten times
        # faster than as thousands of images of a few pixels
        patches = self.masked().coefficients
        identity = torch.eye(math.prod(patches.shape[3:]), dtype=patches.dtype, device=patches.device)
        matrix = _transposed_conv(identity.view(-1, *patches.shape[3:]), kernel, (0, 0), (high, wide))
        inputs = (patches.flatten(3) @ matrix.flatten(1)).view(*patches.shape[:3], *matrix.shape[1:])
        return PatchForms(inputs, shape, self.grid, (down, across), (top, left), outside=True)

    def plus(self, other: LinearForms) -> LinearForms:
        if not isinstance(other, PatchForms) or self.stride != other.stride:
            return super().plus(other)
        a, b = self.masked(), other.masked()
        top, left = (max(p, q) for p, q in zip(a.padding, b.padding, strict=True))
        low, right = (max(k - p, m - q) for k, p, m, q in zip(a.size, a.padding, b.size, b.padding, strict=True))
        total = a._padded(top, left, low, right) + b._padded(top, left, low, right)
        return PatchForms(total, self.shape, self.grid, self.stride, (top, left), outside=False)

    def _padded(self, top: int, left: int, low: int, right: int) -> Tensor:
        """The coefficients in a window that extends by so much around each position's origin."""
        return F.pad(self.coefficients, (
            left - self.padding[1], right + self.padding[1] - self.size[1],
            top - self.padding[0], low + self.padding[0] - self.size[0],
        ))  # fmt: skip

    def _windows(self, values: Tensor) -> Tensor:
        """The windows of (N,*shape), with zeros beyond the border: (N,P,C,kh,kw)."""
        high, wide = self.size
        windows = F.unfold(values, (high, wide), padding=self.padding, stride=self.stride)
        return windows.transpose(1, 2).contiguous().view(len(values), -1, self.shape[0], high, wide)


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


def _transposed_conv(images: Tensor, kernel: Kernel, padding: Pair, size: tuple[int, ...]) -> Tensor:
    """The transposed convolution of (N,O,H,W), as images of `size`: (N,C,*size)."""
    window = (kernel.weight.shape[2], kernel.weight.shape[3])
    if kernel.groups == 1 and kernel.weight.shape[1] <= FEW:
        columns = kernel.weight.flatten(1).T @ images.flatten(2)
        return F.fold(columns, size, window, kernel.dilation, padding, kernel.stride)
    inputs = F.conv_transpose2d(images, kernel.weight, None, kernel.stride, 0, 0, kernel.groups, kernel.dilation)
    # crop to `size`, or fill with zeros the pixels that the convolution does not read
    (top, left), (high, wide) = padding, inputs.shape[2:]
    return F.pad(inputs, (-left, size[1] + left - wide, -top, size[0] + top - high))


def identity_forms(shape: tuple[int, ...], channels: range, like: Tensor) -> LinearForms:
    """The units of some channels of a layer with an output of shape (C,H,W), or some units of one of shape (F,)."""
    if len(shape) == 1:
        return UnitForms(shape[0], channels, like)
    eye = torch.eye(shape[0], dtype=like.dtype, device=like.device)[channels.start : channels.stop]
    return PatchForms(eye[None, None, :, :, None, None], shape, (shape[1], shape[2]), (1, 1), (0, 0), outside=False)


def margin_specification(y: Tensor, classes: int, like: Tensor) -> tuple[Tensor, DenseForms]:
    """The classes j other than the labels y (B,), in order, (B,K-1); the margins z_y - z_j as forms of the logits."""
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y[:, None])
    logits = torch.eye(classes, dtype=like.dtype, device=y.device)
    return others, DenseForms(logits[y][:, None] - logits[others])
