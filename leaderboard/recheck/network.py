"""Converts a network description to variables with affine functions between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core import network_format as described
from bench.core.errors import UserError
from bench.core.network_format import Description, Layer
from leaderboard.recheck.affine import MOST_VARIABLES, Affine
from leaderboard.recheck.layers import Reader, Tensors, Vector, linear_part


@dataclass(frozen=True)
class Rectifier:
    """The variable z where z > 0, leak z elsewhere (leak: one for each unit). position: among the rectifiers."""

    z: Affine
    leak: Vector
    position: int

    @property
    def steepest(self) -> Vector:
        largest: Vector = np.maximum(1, np.abs(self.leak))
        return largest

    def value(self, z: Vector) -> Vector:
        leak = self.leak if z.ndim == 1 else self.leak[:, None]
        result: Vector = np.where(z > 0, z, leak * z)
        return result


@dataclass(frozen=True)
class Maximum:
    """The variable z = r + b, which is max(a, b) where `mask` is 1 and b elsewhere."""

    z: Affine
    a: Affine
    b: Affine
    mask: npt.NDArray[np.bool_]


class Network:
    """Variables, each an affine function of those before it (0 is the image) and then a rectifier or a maximum."""

    def __init__(self, description: Description, tensors: Tensors) -> None:
        """UserError if the description contradicts itself or the tensors."""
        if not description.layers or not isinstance(description.layers[0], described.Image):
            raise UserError("the first layer of the description must be the image")
        self.shape = description.layers[0].shape
        self.layers, self.reader = description.layers, Reader(tensors)
        self.variables: list[Rectifier | Maximum] = []  # variable j is variables[j - 1]
        self.rectifiers: list[int] = []  # which variables are rectifiers, in order
        self._made: list[Affine] = []  # the output of each layer
        for k, layer in enumerate(self.layers):
            if any(not 0 <= i < k for i in layer.inputs) or len(layer.inputs) != _count(layer):
                raise UserError(f"layer {k} of the description does not have the inputs that its kind needs")
            if isinstance(layer, described.Image) != (k == 0):
                raise UserError(f"layer {k} of the description is an image; only the first layer is")
            if not layer.shape or len(layer.shape) > 3 or min(layer.shape) < 1:
                raise UserError(f"layer {k} of the description has the shape {layer.shape}")
            try:
                self._made.append(self._add(layer))
            except (UserError, ValueError) as error:  # ValueError: numpy's, of arrays that do not fit
                raise UserError(f"layer {k} of the description: {error}") from None
        if len(self.variables) > MOST_VARIABLES - 8:
            raise UserError(
                f"the network has {len(self.variables)} activations; this checker takes {MOST_VARIABLES - 8}"
            )
        if len(self.layers[-1].shape) != 1:
            raise UserError("the last layer of the description must be the logits")
        self.output, self.classes = self._made[-1], self.layers[-1].shape[0]
        floating = {name for name, tensor in tensors.items() if np.issubdtype(tensor.dtype, np.floating)}
        self.unused = sorted(floating - self.reader.read_names)  # weights that no layer has

    def logits(self, images: Vector) -> Vector:
        """Compute logits (N,K) for images (N,C,H,W), without a bound on the rounding error."""
        values = [images.reshape(len(images), -1).T]
        for variable in self.variables:
            z = variable.z.value(values)
            values.append(variable.value(z) if isinstance(variable, Rectifier) else z)
        return self.output.value(values).T

    def _add(self, layer: Layer) -> Affine:
        units = int(np.prod(layer.shape))
        inputs = [self._made[i] for i in layer.inputs]
        shapes = [self.layers[i].shape for i in layer.inputs]
        if isinstance(layer, described.Image):
            return Affine.of_variable(0, units)
        if isinstance(layer, described.Concatenate):
            if [sum(shape[0] for shape in shapes), *shapes[0][1:]] != layer.shape or any(
                shape[1:] != layer.shape[1:] for shape in shapes
            ):
                raise UserError(f"inputs {shapes} do not make {layer.shape}")
            starts = np.cumsum([0, *(len(each.bias) for each in inputs)])
            parts = [each.placed(int(start), units) for each, start in zip(inputs, starts, strict=False)]
            total = parts[0]
            for part in parts[1:]:
                total = total.plus(part)
            return total
        if isinstance(layer, described.Rectifier | described.Add | described.Maximum):
            if any(shape != layer.shape for shape in shapes):
                raise UserError(f"inputs {shapes} do not have its shape {layer.shape}")
            if isinstance(layer, described.Add):
                return inputs[0].plus(inputs[1])
            if isinstance(layer, described.Rectifier):
                leak, _ = self.reader.along(layer.leak, layer.shape)
                self.rectifiers.append(len(self.variables) + 1)
                return self._variable(Rectifier(inputs[0], leak, len(self.rectifiers) - 1))
            mask = self._mask(layer)
            return self._variable(Maximum(inputs[0].plus(inputs[1]), inputs[2], inputs[1], mask))
        matrix, bias, size = linear_part(layer, shapes[0], self.reader)
        return inputs[0].after(matrix, bias, size)

    def _variable(self, variable: Rectifier | Maximum) -> Affine:
        self.variables.append(variable)
        return Affine.of_variable(len(self.variables), len(variable.z.bias))

    def _mask(self, layer: described.Maximum) -> npt.NDArray[np.bool_]:
        """The mask m of r = relu(m (a - b)). UserError if r is something else."""
        wrong = UserError("its first input is not the ReLU of the difference of the others")
        r, b, a = layer.inputs
        rectifier = self.layers[r]
        if not isinstance(rectifier, described.Rectifier) or np.any(self.reader.read(rectifier.leak)[0] != 0):
            raise wrong
        difference, mask = self.layers[rectifier.inputs[0]], np.ones(layer.shape)
        if isinstance(difference, described.Scale):
            factor, shift = (self.reader.along(each, layer.shape)[0] for each in (difference.weight, difference.bias))
            if np.any((factor != 0) & (factor != 1)) or np.any(shift != 0):
                raise wrong
            mask, difference = factor, self.layers[difference.inputs[0]]
        if not isinstance(difference, described.Add) or difference.inputs[0] != a:
            raise wrong
        negative = self.layers[difference.inputs[1]]
        if not isinstance(negative, described.Scale) or negative.inputs != [b]:
            raise wrong
        factor, shift = (self.reader.read(each)[0] for each in (negative.weight, negative.bias))
        if np.any(factor != -1) or np.any(shift != 0):
            raise wrong
        flags: npt.NDArray[np.bool_] = mask.ravel() == 1
        return flags


def _count(layer: Layer) -> int:
    if isinstance(layer, described.Concatenate):
        return max(1, len(layer.inputs))
    return {described.Image: 0, described.Add: 2, described.Maximum: 3}.get(type(layer), 1)
