"""Layers of several inputs: sums, concatenations and maxima."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from certifiers.layers import Interval
from certifiers.linear_forms import LinearForms

Shape = tuple[int, ...]


class Join(ABC):
    """A layer of several inputs."""

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor]) -> Tensor: ...

    def linear(self, inputs: Sequence[Tensor]) -> Tensor:
        """The linear function of the inputs that `backward` transposes; it differs from `forward` for a maximum."""
        return self.forward(inputs)

    @abstractmethod
    def interval(self, inputs: Sequence[Interval]) -> Interval: ...

    @abstractmethod
    def backward(self, forms: LinearForms, shapes: Sequence[Shape]) -> Sequence[LinearForms | None]:
        """Express forms of the output as a sum of forms of the inputs; None for an input that is not needed."""

    def magnitude(self, sizes: Sequence[Tensor]) -> Tensor:
        """The largest possible absolute value of the output, given those of the inputs."""
        return self.forward(sizes)

    def variance(self, variances: Sequence[Tensor]) -> Tensor:
        """The variance of the output, given those of the inputs' errors."""
        return self.forward(variances)

    @abstractmethod
    def lipschitz(self, constants: Sequence[Tensor]) -> Tensor:
        """An L2 Lipschitz constant of the output as a function of the image, given those of the inputs."""


class Add(Join):
    """The sum of two inputs of one shape."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] + inputs[1]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        (a, r), (b, s) = inputs
        return a + b, r + s

    def backward(self, forms: LinearForms, shapes: Sequence[Shape]) -> Sequence[LinearForms | None]:
        return [forms, forms]

    def lipschitz(self, constants: Sequence[Tensor]) -> Tensor:
        return constants[0] + constants[1]


class Concatenate(Join):
    """The inputs one after the other, along the channels (or units)."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        rows = max(map(len, inputs))  # an input that is the same for all examples has one row
        return torch.cat([each.expand(rows, *each.shape[1:]) for each in inputs], dim=1)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        return self.forward([center for center, _ in inputs]), self.forward([radius for _, radius in inputs])

    def backward(self, forms: LinearForms, shapes: Sequence[Shape]) -> Sequence[LinearForms | None]:
        parts, start = [], 0
        for shape in shapes:
            parts.append(forms.of_channels(start, start + shape[0]))
            start += shape[0]
        return parts

    def lipschitz(self, constants: Sequence[Tensor]) -> Tensor:
        return torch.stack([each.double() for each in constants]).square().sum().sqrt()


class Maximum(Join):
    """max(a, b) = r + b with r = relu(a - b); the inputs are r, b, a in this order.

    r is a node of its own, so linear bounds, branching and mixed-integer programs only need to handle the ReLU.
    Interval bounds are those of the maximum itself. valid: a mask that broadcasts against (1,*shape); where it is False
    the output is b, and r must be 0. None: valid everywhere.
    """

    def __init__(self, valid: Tensor | None = None) -> None:
        self.valid = valid

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        _, b, a = inputs
        most = torch.maximum(a, b)
        return most if self.valid is None else torch.where(self.valid, most, b)

    def linear(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] + inputs[1]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        low = self.forward([center - radius for center, radius in inputs])
        high = self.forward([center + radius for center, radius in inputs])
        center = torch.lerp(low, high, 0.5)
        return center, center - low

    def backward(self, forms: LinearForms, shapes: Sequence[Shape]) -> Sequence[LinearForms | None]:
        return [forms, forms, None]

    def lipschitz(self, constants: Sequence[Tensor]) -> Tensor:
        _, b, a = (each.double() for each in constants)
        return (a.square() + b.square()).sqrt()
