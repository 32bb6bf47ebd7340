"""What the architectures share: activations by name, and assembling named layers behind a normalisation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from bench.core.errors import UserError
from bench.core.layers import Normalize

Activation = Literal["relu", "sigmoid", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def assemble(
    layers: Sequence[tuple[str, nn.Module]], mean: Sequence[float] = (), std: Sequence[float] = ()
) -> nn.Sequential:
    """Named layers in a row, after Normalize(mean, std) where those are given."""
    if len(mean) != len(std) or any(s <= 0 for s in std):
        raise UserError("model: mean and std must have one value per channel each, std positive")
    first = [("normalize", Normalize(mean, std))] if mean else []
    return nn.Sequential(OrderedDict([*first, *layers]))


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
