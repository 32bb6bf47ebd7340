"""Linear functions of a layer's output: the rows that are pulled back through a network, layer by layer.

`Dense` has a coefficient for every unit. `Patches` belongs to the units of a convolution's output: each looks at a
window of the layer only, so its coefficients are that window's (the receptive field), never a whole image's.
"""

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
FEW = 4  # channels of a convolution's input, below which torch's transposed convolution is slow on a CPU


@dataclass(frozen=True)
class Window:
    """How a convolution looks at its input: weight (O,C/groups,kh,kw) and its geometry. Zeros are around the image."""

    weight: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.weight.shape[2 + axis] - 1) + 1

    def widened(self, axis: int, size: int, stride: int, padding: int) -> tuple[int, int, int]:
        """A window of (size, stride, padding) on this one's output, as a window on its input."""
        step = self.stride[axis]
        return (size - 1) * step + self.reach(axis), stride * step, padding * step + self.padding[axis]


class Rows(ABC):
    """T linear functions for each of B examples, of a layer whose output has `shape` (C,H,W) or (F,).

    Where the coefficients are the same for all examples (or windows), their axis has length 1.
    """

    shape: tuple[int, ...]
    coefficients: Tensor

    @abstractmethod
    def dot(self, values: Tensor) -> Tensor:
        """The functions at `values` (B|1,*shape): (B|1,T)."""

    @abstractmethod
    def mapped(self, coefficients: Tensor) -> Rows:
        """The same rows with other coefficients, of this or a broadcastable size."""

    @abstractmethod
    def like(self, values: Tensor) -> Tensor:
        """`values` (B|1,*shape), one for each unit, in a size that multiplies the coefficients."""

    @abstractmethod
    def norm(self, order: float) -> Tensor:
        """The norm of each row's coefficients, (B|1,T)."""

    @abstractmethod
    def dense(self) -> Dense: ...

    @abstractmethod
    def through_conv(self, window: Window, shape: tuple[int, ...]) -> Rows:
        """Pulled back through a convolution (without its bias), whose input has `shape`."""

    def times(self, values: Tensor) -> Rows:
        return self.mapped(self.coefficients * self.like(values))

    def flipped(self) -> Rows:
        return self.mapped(-self.coefficients)

    def negative(self) -> Rows:
        return self.mapped(self.coefficients.clamp(max=0))

    def magnitude(self) -> Rows:
        return self.mapped(self.coefficients.abs())

    def plus(self, other: Rows) -> Rows:
        """The sum of two sets of rows of one layer."""
        mine, yours = self.dense(), other.dense()
        return mine.mapped(mine.coefficients + yours.coefficients)


class Dense(Rows):
    """coefficients (B|1,T,*shape)."""

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

    def mapped(self, coefficients: Tensor) -> Dense:
        return Dense(coefficients)

    def like(self, values: Tensor) -> Tensor:
        return values if values.dim() == self.coefficients.dim() else values.unsqueeze(1)

    def norm(self, order: float) -> Tensor:
        return torch.linalg.vector_norm(self.flat, ord=order, dim=2)

    def dense(self) -> Dense:
        return self

    def reshaped(self, shape: tuple[int, ...]) -> Dense:
        return Dense(self.coefficients.reshape(*self.coefficients.shape[:2], *shape))

    def through_linear(self, weight: Tensor) -> Dense:
        return Dense(_Product.apply(self.coefficients.flatten(0, 1), weight).unflatten(0, self.coefficients.shape[:2]))

    def through_conv(self, window: Window, shape: tuple[int, ...]) -> Dense:
        lead = self.coefficients.shape[:2]
        images = self.coefficients.flatten(0, 1)
        pulled = _conv_back(images, window, window.padding, shape[1:])
        return Dense(pulled.reshape(*lead, *shape))


class Units(Dense):
    """Some of the units of a flat layer themselves."""

    def __init__(self, size: int, some: range, like: Tensor) -> None:
        super().__init__(torch.eye(size, dtype=like.dtype, device=like.device)[None, some.start : some.stop])
        self.some = some

    def through_linear(self, weight: Tensor) -> Dense:
        return Dense(weight[None, self.some.start : self.some.stop])


class Patches(Rows):
    """The units of a (O,*grid) output, each with the window of the layer that it sees.

    coefficients (B|1,P|1,O,C,kh,kw), P = the grid's positions. T = O x P, in the order of the output's flattening.
    outside: the coefficients of what lies beyond the image's border may differ from zero (they stand for nothing).
    """

    def __init__(
        self, coefficients: Tensor, shape: tuple[int, ...], grid: Pair, stride: Pair, padding: Pair, *, outside: bool
    ) -> None:
        self.coefficients, self.shape, self.grid = coefficients, shape, grid
        self.stride, self.padding, self.outside = stride, padding, outside

    @classmethod
    def identity(cls, shape: tuple[int, ...], channels: range, like: Tensor) -> Patches:
        """The units of a layer themselves, of some of its channels."""
        eye = torch.eye(shape[0], dtype=like.dtype, device=like.device)[channels.start : channels.stop]
        return cls(eye[None, None, :, :, None, None], shape, (shape[1], shape[2]), (1, 1), (0, 0), outside=False)

    @property
    def positions(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def size(self) -> Pair:
        return self.coefficients.shape[4], self.coefficients.shape[5]

    @cached_property
    def inside(self) -> Tensor:
        """1 where a window is within the image, else 0: (1,P,C,kh,kw)."""
        like = self.coefficients
        return self._cut(torch.ones((1, *self.shape), dtype=like.dtype, device=like.device))

    def masked(self) -> Patches:
        """With zeros beyond the border."""
        if not self.outside or self.padding == (0, 0):
            return self
        return self._with(self.coefficients * self.inside.unsqueeze(2), outside=False)

    def dot(self, values: Tensor) -> Tensor:
        windows = self._cut(values).flatten(2)  # zeros beyond the border: those coefficients count for nothing
        flat = self.coefficients.flatten(3)
        shared = flat.shape[:2] == (1, 1)
        found = windows @ flat[0, 0].T if shared else (flat @ windows[..., None]).squeeze(3)
        return found.transpose(1, 2).flatten(1)

    def mapped(self, coefficients: Tensor) -> Patches:
        return self._with(coefficients, outside=self.outside)

    def like(self, values: Tensor) -> Tensor:
        return self._cut(values).unsqueeze(2)

    def times(self, values: Tensor) -> Patches:
        return self._with(self.coefficients * self.like(values), outside=False)

    def norm(self, order: float) -> Tensor:
        flat = self.masked().coefficients.flatten(3)
        norms = torch.linalg.vector_norm(flat, ord=order, dim=3)
        return norms.expand(-1, self.positions, -1).transpose(1, 2).flatten(1)

    def dense(self) -> Dense:
        (channels, height, width), (up, side), (high, wide) = self.shape, self.padding, self.size
        whole = self.masked().coefficients.expand(-1, self.positions, -1, -1, -1, -1).transpose(1, 2)
        rows = whole.reshape(len(whole), whole.shape[1] * self.positions, -1)
        canvas = rows.new_zeros(*rows.shape[:2], channels * (height + 2 * up) * (width + 2 * side))
        each = partial(torch.arange, device=rows.device)
        line = width + 2 * side
        corner = (each(self.grid[0]) * self.stride[0] * line)[:, None] + each(self.grid[1]) * self.stride[1]
        offset = (each(channels) * (height + 2 * up) * line)[:, None, None] + (each(high) * line)[:, None] + each(wide)
        place = corner.flatten().repeat(whole.shape[1])[:, None] + offset.flatten()
        canvas = canvas.scatter(2, place.expand(len(rows), -1, -1), rows)
        canvas = canvas.unflatten(2, (channels, height + 2 * up, line))
        return Dense(canvas[..., up : up + height, side : side + width])

    def through_conv(self, window: Window, shape: tuple[int, ...]) -> Rows:
        geometry = [window.widened(axis, self.size[axis], self.stride[axis], self.padding[axis]) for axis in (0, 1)]
        (high, down, top), (wide, across, left) = geometry
        if high * wide >= shape[1] * shape[2]:
            return self.dense().through_conv(window, shape)
        # on one window the transposed convolution is a small matrix, and thousands of windows go through it at once:
        # ten times faster than as thousands of images of a few pixels
        whole = self.masked().coefficients
        unit = torch.eye(math.prod(whole.shape[3:]), dtype=whole.dtype, device=whole.device)
        matrix = _conv_back(unit.view(-1, *whole.shape[3:]), window, (0, 0), (high, wide))
        pulled = whole.flatten(3) @ matrix.flatten(1)
        pulled = pulled.view(*whole.shape[:3], *matrix.shape[1:])
        return Patches(pulled, shape, self.grid, (down, across), (top, left), outside=True)

    def plus(self, other: Rows) -> Rows:
        if not isinstance(other, Patches) or self.stride != other.stride:
            return super().plus(other)
        mine, yours = self.masked(), other.masked()
        around = [max(p, q) for p, q in zip(self.padding, other.padding, strict=True)]
        ends = [
            max(k - p, m - q) for k, p, m, q in zip(self.size, self.padding, other.size, other.padding, strict=True)
        ]
        both = mine._grown(around, ends) + yours._grown(around, ends)
        return Patches(both, self.shape, self.grid, self.stride, (around[0], around[1]), outside=False)

    def _grown(self, around: list[int], ends: list[int]) -> Tensor:
        """The coefficients in a larger window, from `around` before each position's origin to `ends` after it."""
        (top, left), (high, wide) = self.padding, self.size
        pads = (around[1] - left, ends[1] + left - wide, around[0] - top, ends[0] + top - high)
        return F.pad(self.coefficients, pads)

    def _with(self, coefficients: Tensor, *, outside: bool) -> Patches:
        return Patches(coefficients, self.shape, self.grid, self.stride, self.padding, outside=outside)

    def _cut(self, values: Tensor) -> Tensor:
        """The windows of (N,*shape), with zeros beyond the border: (N,P,C,kh,kw)."""
        high, wide = self.size
        cut = F.unfold(values, (high, wide), padding=self.padding, stride=self.stride)
        return cut.transpose(1, 2).contiguous().view(len(values), -1, self.shape[0], high, wide)


class _Product(torch.autograd.Function):
    """rows (R,F) @ weight. Its backward leaves out the rows without a gradient: a hinge needs few of those it sees."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        used = gradient.any(dim=1).nonzero().squeeze(1)
        gradient = gradient[used]
        return torch.zeros_like(rows).index_copy(0, used, gradient @ weight.T), rows[used].T @ gradient


def _conv_back(images: Tensor, window: Window, padding: Pair, to: tuple[int, ...]) -> Tensor:
    """The transposed convolution of (N,O,H,W), to images of the size `to`: (N,C,*to)."""
    kernel = (window.weight.shape[2], window.weight.shape[3])
    if window.groups == 1 and window.weight.shape[1] <= FEW:
        columns = window.weight.flatten(1).T @ images.flatten(2)
        return F.fold(columns, to, kernel, window.dilation, padding, window.stride)
    pulled = F.conv_transpose2d(images, window.weight, None, window.stride, 0, 0, window.groups, window.dilation)
    # cut (or fill up with zeros: what the convolution never looks at) to what lies within the padding
    (top, left), (high, wide) = padding, pulled.shape[2:]
    return F.pad(pulled, (-left, to[1] + left - wide, -top, to[0] + top - high))


def units(shape: tuple[int, ...], some: range, like: Tensor) -> Rows:
    """The units of a layer with an output of `shape` themselves: some of its channels (C,H,W), or of its units (F,)."""
    return Patches.identity(shape, some, like) if len(shape) == 3 else Units(shape[0], some, like)


def differences(y: Tensor, classes: int, like: Tensor) -> tuple[Tensor, Dense]:
    """The classes j other than the labels y (B,), in order, (B,K-1); and the rows z_y - z_j of the logits."""
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y[:, None])
    logits = torch.eye(classes, dtype=like.dtype, device=y.device)
    return others, Dense(logits[y][:, None] - logits[others])
