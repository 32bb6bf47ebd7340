"""The linear layers of a described network as sparse matrices, on flattened values.

A description refers to the exact numbers in the weights file. Numbers derived by a formula (batch norm) have a relative
error below FORMULA units in the last place, which the error bounds of affine.py include.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from bench.core import network_format as described
from bench.core.errors import UserError
from bench.core.network_format import Array

Vector = npt.NDArray[np.float64]
Tensors = Mapping[str, npt.NDArray[Any]]
Matrix = Any  # scipy.sparse.csr_array
FORMULA = 8


class Reader:
    """Reads the arrays of a description from the tensors of the weights file."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.read_names: set[str] = set()

    def tensor(self, name: str) -> Vector:
        if name not in self.tensors:
            raise UserError(f"the description names a tensor '{name}', which the weights file does not have")
        self.read_names.add(name)
        value = np.asarray(self.tensors[name], dtype=np.float64)
        if not np.isfinite(value).all():
            raise UserError(f"tensor '{name}' of the weights file is not finite")
        return value

    def read(self, array: Array) -> tuple[Vector, Vector]:
        """Return the values of an array, and for each the sum of the absolute values of its terms."""
        if isinstance(array, described.NormScale | described.NormShift):
            return self._norm(array)
        if isinstance(array, described.Numbers):
            if np.prod(array.shape) != len(array.values) or not np.isfinite(array.values).all():
                raise UserError("constants of the description are not finite, or not of the shape that it says")
            value = np.array(array.values, dtype=np.float64).reshape(array.shape)
        elif isinstance(array, described.Masked):
            value = self.tensor(array.name)
            mask = np.unpackbits(np.frombuffer(array.mask, dtype=np.uint8))[: value.size]
            if mask.size != value.size:
                raise UserError(f"the mask of '{array.name}' is too short")
            value = value * mask.reshape(value.shape)
        else:
            value = self.tensor(array.name)
        return value, np.abs(value)

    def _norm(self, array: described.NormScale | described.NormShift) -> tuple[Vector, Vector]:
        var = self.tensor(array.var)
        if not np.all(var + array.eps > 0):
            raise UserError(f"'{array.var}' of the weights file is not positive")
        scale = 1 / np.sqrt(var + array.eps)
        if array.weight is not None:
            scale = scale * self.tensor(array.weight)
        if isinstance(array, described.NormScale):
            return scale, np.abs(scale)
        product = self.tensor(array.mean) * scale
        bias = np.zeros_like(product) if array.bias is None else self.tensor(array.bias)
        return bias - product, np.abs(bias) + np.abs(product)

    def along(self, array: Array, shape: list[int]) -> tuple[Vector, Vector]:
        """`read`, broadcast to a layer's output and flattened; (C,) of a batch norm counts as (C,1,1)."""
        value, size = self.read(array)
        if isinstance(array, described.NormScale | described.NormShift):
            value, size = (each.reshape(-1, *[1] * (len(shape) - 1)) for each in (value, size))
        try:
            return np.broadcast_to(value, shape).ravel(), np.broadcast_to(size, shape).ravel()
        except ValueError:
            raise UserError(f"an array of shape {value.shape} does not fit an output of shape {shape}") from None


def linear_part(layer: described.Layer, before: list[int], reader: Reader) -> tuple[Matrix, Vector, Vector]:
    """Return the matrix, the bias, and the size of the bias of a linear layer with one input of shape `before`."""
    units, size = int(np.prod(layer.shape)), int(np.prod(before))
    zero = np.zeros(units)
    if isinstance(layer, described.Reshape):
        _require(units == size, layer, before)
        return sparse.eye_array(size, format="csr"), zero, zero
    if isinstance(layer, described.Scale):
        _require(layer.shape == before, layer, before)
        factor, _ = reader.along(layer.weight, layer.shape)
        return sparse.diags_array(factor, format="csr"), *reader.along(layer.bias, layer.shape)
    if isinstance(layer, described.Linear):
        weight, _ = reader.read(layer.weight)
        _require(weight.shape == (units, size), layer, before)
        bias = (zero, zero) if layer.bias is None else reader.along(layer.bias, layer.shape)
        return sparse.csr_array(weight), *bias
    assert isinstance(layer, described.Conv)
    _require(len(before) == 3 and len(layer.shape) == 3, layer, before)
    weight, _ = reader.read(layer.weight)
    transposed = isinstance(layer, described.TransposedConv)
    matrix = _conv(weight, layer, layer.shape if transposed else before, before if transposed else layer.shape)
    bias = (zero, zero)
    if layer.bias is not None:
        value, absolute = reader.read(layer.bias)
        _require(value.shape == (layer.shape[0],), layer, before)
        bias = np.repeat(value, units // len(value)), np.repeat(absolute, units // len(value))
    return (sparse.csr_array(matrix.T) if transposed else matrix), *bias


def _conv(weight: Vector, layer: described.Conv, read: list[int], written: list[int]) -> Matrix:
    """The matrix of a convolution from images of shape `read` to images of shape `written`."""
    _require(weight.ndim == 4 and layer.groups > 0 and min(layer.stride + layer.dilation) > 0, layer, read)
    out, per_group = weight.shape[:2]
    _require(written[0] == out and out % layer.groups == 0 and per_group * layer.groups == read[0], layer, read)
    # the index of each weight, and of each position in the output
    o, c, i, j = (axis[..., None, None] for axis in np.ix_(*map(np.arange, weight.shape)))
    y, x = np.arange(written[1])[:, None], np.arange(written[2])
    row = y * layer.stride[0] + i * layer.dilation[0] - layer.padding[0]
    column = x * layer.stride[1] + j * layer.dilation[1] - layer.padding[1]
    channel = o // (out // layer.groups) * per_group + c
    inside = (row >= 0) & (row < read[1]) & (column >= 0) & (column < read[2])
    source = (channel * read[1] + row) * read[2] + column
    target = (o * written[1] + y) * written[2] + x
    full = (*weight.shape, *written[1:])
    inside = np.broadcast_to(inside, full) & (weight != 0)[..., None, None]
    source, target, values = (np.broadcast_to(each, full)[inside] for each in (source, target, weight[..., None, None]))
    return sparse.csr_array((values, (target, source)), shape=(int(np.prod(written)), int(np.prod(read))))


def _require(fits: bool, layer: described.Layer, before: list[int]) -> None:
    if not fits:
        kind = type(layer).__name__
        raise UserError(f"a {kind} of the description does not fit its input {before} and its output {layer.shape}")
