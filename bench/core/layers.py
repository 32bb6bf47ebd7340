"""The project's own layers. Models are built from these and torch's, so that certifiers can bound every layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Normalize(nn.Module):
    """(x - mean) / std per channel, for x (B,C,H,W) in [0,1]: the first layer of a model, never part of the data."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """branch(x) + shortcut(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut if shortcut is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


class TwoLogits(nn.Module):
    """One output f (B,1) of a binary classifier as logits -f/2 and f/2, whose cross entropy is the logistic loss."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x / 2, x / 2], dim=1)


class FixedLinear(nn.Module):
    """Computes x W^T with a fixed weight (out, in). The weight is a buffer: it is saved, but not trained."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)
