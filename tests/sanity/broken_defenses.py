"""Defenses that only look robust: each wraps a sound model and misleads gradient attacks in its own way."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module, amount: float) -> None:
        super().__init__()
        self.model, self.amount = model, amount


class QuantisedInput(Wrapped):
    """Rounds each pixel to one of `amount` + 1 levels: the gradient is zero almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * self.amount).round() / self.amount)


class RandomNoise(Wrapped):
    """Adds Gaussian noise of standard deviation `amount` to the image, anew in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.amount * torch.randn_like(x))


class SaturatedLogits(Wrapped):
    """Multiplies the logits by `amount`: in float32 the cross entropy is exactly zero, and so is its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.amount * self.model(x)
