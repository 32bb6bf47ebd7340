"""What Auto-PGD knows of each example, in either of its forms."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass
class Walk:
    """The examples that are still climbed with: a row each, in the order of `rows`."""

    rows: Tensor
    x: Tensor
    y: Tensor
    point: Tensor  # where it is, with its gradient
    gradient: Tensor
    top_point: Tensor  # the highest point so far, with its gradient and loss
    top_gradient: Tensor
    top: Tensor
    length: Tensor  # the step size

    def of(self, stay: Tensor) -> Self:
        """Some of the examples."""
        return type(self)(*(getattr(self, field.name)[stay] for field in fields(self)))

    def remember(self, values: Tensor) -> None:
        """The losses (b,) at the points: is one the highest so far?"""
        higher = values > self.top
        self.top = torch.where(higher, values, self.top)
        self.top_point = torch.where(self.sideways(higher), self.point, self.top_point)
        self.top_gradient = torch.where(self.sideways(higher), self.gradient, self.top_gradient)

    def go_back(self, which: Tensor) -> None:
        """To the highest point so far, for the examples `which` (b,) bool."""
        self.point = torch.where(self.sideways(which), self.top_point, self.point)
        self.gradient = torch.where(self.sideways(which), self.top_gradient, self.gradient)

    def sideways(self, values: Tensor) -> Tensor:
        """One value an example, (b,), in the shape that broadcasts against images (b,C,H,W)."""
        return values.reshape(-1, *[1] * (self.x.dim() - 1))
