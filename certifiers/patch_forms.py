"""Linear forms of single units of convolutions: each has coefficients for its receptive field only."""

from __future__ import annotations

import math
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from certifiers.linear_forms import DenseForms, Kernel, LinearForms, Pair, UnitForms, norm_of, transposed_conv


class PatchForms(LinearForms):
    """The units of a convolution's output (O,*grid), each with coefficients for its receptive field in the layer only.

    coefficients (B|1,P|1,O,C,kh,kw), P = number of positions of the grid. T = O x P, in the order of the flattened
    output. outside: True if coefficients beyond the image's border may be nonzero; they must be ignored. positions
    (B,T) int64, if the forms are T units selected for each example: the position of each in the flattened grid. The
    coefficients are then (B,T,1,C,kh,kw).
    """

    def __init__(
        self, coefficients: Tensor, shape: tuple[int, ...], grid: Pair, stride: Pair, padding: Pair,
        *, outside: bool, positions: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.coefficients, self.shape, self.grid = coefficients, shape, grid
        self.stride, self.padding, self.outside, self.positions = stride, padding, outside, positions
        self.size = (coefficients.shape[4], coefficients.shape[5])
        self.windows = grid[0] * grid[1] if positions is None else positions.shape[1]

    @cached_property
    def inside(self) -> Tensor:
        """1 if an entry of a window is within the image, else 0: (1,P,C,kh,kw), or (B,T,C,kh,kw)."""
        like = self.coefficients
        return self._windows_of(torch.ones((1, *self.shape), dtype=like.dtype, device=like.device))

    def masked(self) -> PatchForms:
        """The same forms with zeros beyond the border."""
        if not self.outside or self.padding == (0, 0):
            return self
        return self.with_coefficients(self.coefficients * self.inside.unsqueeze(2), outside=False)

    def dot(self, values: Tensor) -> Tensor:
        windows = self._windows_of(values).flatten(2)  # zero beyond the border, so those coefficients have no effect
        flat = self.coefficients.flatten(3)
        if self.positions is not None:
            return (flat.squeeze(2) * windows).sum(dim=2)
        shared = flat.shape[:2] == (1, 1)
        products = windows @ flat[0, 0].T if shared else (flat @ windows[..., None]).squeeze(3)
        return products.transpose(1, 2).flatten(1)

    def with_coefficients(self, coefficients: Tensor, *, outside: bool | None = None) -> PatchForms:
        outside = self.outside if outside is None else outside
        return PatchForms(
            coefficients, self.shape, self.grid, self.stride, self.padding, outside=outside, positions=self.positions
        )

    def align(self, values: Tensor) -> Tensor:
        return self._windows_of(values).unsqueeze(2)

    def of_units(self, units: Tensor) -> PatchForms:
        channel, position = units // self.windows, units % self.windows
        table = self.coefficients[0]
        index = channel if len(table) == 1 else position * table.shape[1] + channel
        chosen = F.embedding(index, table.flatten(2).flatten(0, 1)).unflatten(2, (1, *table.shape[2:]))
        return PatchForms(
            chosen, self.shape, self.grid, self.stride, self.padding, outside=self.outside, positions=position
        )

    def of_channels(self, start: int, stop: int) -> PatchForms:
        part, shape = self.coefficients[:, :, :, start:stop], (stop - start, *self.shape[1:])
        return PatchForms(
            part, shape, self.grid, self.stride, self.padding, outside=self.outside, positions=self.positions
        )

    def scaled(self, values: Tensor) -> PatchForms:
        return self.with_coefficients(self.coefficients * self.align(values), outside=False)

    def norm(self, order: float) -> Tensor:
        flat = self.masked().coefficients.flatten(3)
        norms = norm_of(flat, order)
        return norms.expand(-1, self.windows, -1).transpose(1, 2).flatten(1)

    def dense(self) -> DenseForms:
        (channels, height, width), (top, left), (high, wide) = self.shape, self.padding, self.size
        patches = self.masked().coefficients.expand(-1, self.windows, -1, -1, -1, -1).transpose(1, 2)
        forms = patches.reshape(len(patches), patches.shape[1] * self.windows, -1)
        padded_height, padded_width = height + 2 * top, width + 2 * left
        canvas = forms.new_zeros(*forms.shape[:2], channels * padded_height * padded_width)
        arange = partial(torch.arange, device=forms.device)
        # indices in the flattened padded image: a window's first entry, and the others relative to it
        position = arange(self.grid[0] * self.grid[1])[None] if self.positions is None else self.positions
        row, column = position // self.grid[1], position % self.grid[1]
        corner = row * self.stride[0] * padded_width + column * self.stride[1]
        offset = (arange(channels) * padded_height * padded_width)[:, None, None]
        offset = offset + (arange(high) * padded_width)[:, None] + arange(wide)
        index = corner.repeat(1, patches.shape[1])[:, :, None] + offset.flatten()
        canvas = canvas.scatter(2, index.expand(len(forms), -1, -1), forms)
        canvas = canvas.unflatten(2, (channels, padded_height, padded_width))
        return DenseForms(canvas[..., top : top + height, left : left + width])

    def conv_backward(self, kernel: Kernel, shape: tuple[int, ...]) -> LinearForms:
        windows = [kernel.window(axis, self.size[axis], self.stride[axis], self.padding[axis]) for axis in (0, 1)]
        (high, down, top), (wide, across, left) = windows
        if high * wide >= shape[1] * shape[2]:
            return self.dense().conv_backward(kernel, shape)
        # on one window the transposed convolution is a small matrix, which is applied to all windows at once: ten times
        # faster than a convolution of thousands of images of a few pixels
        patches = self.masked().coefficients
        identity = torch.eye(math.prod(patches.shape[3:]), dtype=patches.dtype, device=patches.device)
        matrix = transposed_conv(identity.view(-1, *patches.shape[3:]), kernel, (0, 0), (high, wide))
        inputs = (patches.flatten(3) @ matrix.flatten(1)).view(*patches.shape[:3], *matrix.shape[1:])
        stride, padding = (down, across), (top, left)
        return PatchForms(inputs, shape, self.grid, stride, padding, outside=True, positions=self.positions)

    def plus(self, other: LinearForms) -> LinearForms:
        if not isinstance(other, PatchForms) or self.stride != other.stride:
            return super().plus(other)
        a, b = self.masked(), other.masked()
        top, left = (max(p, q) for p, q in zip(a.padding, b.padding, strict=True))
        low, right = (max(k - p, m - q) for k, p, m, q in zip(a.size, a.padding, b.size, b.padding, strict=True))
        total = a._padded(top, left, low, right) + b._padded(top, left, low, right)
        return PatchForms(
            total, self.shape, self.grid, self.stride, (top, left), outside=False, positions=self.positions
        )

    def _padded(self, top: int, left: int, low: int, right: int) -> Tensor:
        """The coefficients in a window that extends around each position's origin by the given amounts."""
        return F.pad(self.coefficients, (
            left - self.padding[1], right + self.padding[1] - self.size[1],
            top - self.padding[0], low + self.padding[0] - self.size[0],
        ))  # fmt: skip

    def _windows_of(self, values: Tensor) -> Tensor:
        """The windows of (N,*shape), with zeros beyond the border: (N,P,C,kh,kw), or (B,T,C,kh,kw)."""
        high, wide = self.size
        windows = F.unfold(values, (high, wide), padding=self.padding, stride=self.stride).transpose(1, 2)
        if self.positions is None:
            windows = windows.contiguous()
        else:
            first = torch.arange(len(values), device=values.device)[:, None] * windows.shape[1]
            windows = F.embedding(first + self.positions, windows.flatten(0, 1))
        return windows.unflatten(2, (self.shape[0], high, wide))


def identity_forms(shape: tuple[int, ...], channels: range, like: Tensor) -> LinearForms:
    """The units of some channels of a layer with an output of shape (C,H,W), or some units of one of shape (F,)."""
    if len(shape) == 1:
        return UnitForms(shape[0], channels, like)
    eye = torch.eye(shape[0], dtype=like.dtype, device=like.device)[channels.start : channels.stop]
    return PatchForms(eye[None, None, :, :, None, None], shape, (shape[1], shape[2]), (1, 1), (0, 0), outside=False)
