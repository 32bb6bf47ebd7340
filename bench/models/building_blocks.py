"""Building blocks of several architectures: activations, residual stages, named layers after a normalisation."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from bench.core.errors import UserError
from bench.core.layers import Normalize

Activation = Literal["relu", "sigmoid", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
Shape = tuple[int, int, int]  # (C, H, W) of an image
PerChannel = tuple[float, ...]
NamedLayers = list[tuple[str, nn.Module]]


def assemble(layers: NamedLayers, mean: PerChannel = (), std: PerChannel = ()) -> nn.Sequential:
    """A sequence of named layers, after Normalize(mean, std) if these are given."""
    if len(mean) != len(std) or any(s <= 0 for s in std):
        raise UserError("model: mean and std must have one value per channel, and std must be positive")
    first = [("normalize", Normalize(mean, std))] if mean else []
    return nn.Sequential(OrderedDict([*first, *layers]))


def conv3x3(channels_in: int, channels_out: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=bias)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)


def residual_stages(
    block: Callable[[int, int, int], nn.Module], channels: int, stages: Sequence[tuple[int, int]]
) -> NamedLayers:
    """Stages of (number of blocks, channels), each made of block(channels_in, channels_out, stride).

    channels: of the input. Every stage but the first halves the image size.
    """
    layers: NamedLayers = []
    for stage, (depth, width) in enumerate(stages):
        blocks = []
        for index in range(depth):
            blocks.append(block(channels, width, 2 if stage > 0 and index == 0 else 1))
            channels = width
        layers.append((f"stage{stage + 1}", nn.Sequential(*blocks)))
    return layers


def classifier(channels: int, classes: int) -> NamedLayers:
    """Global average pooling and a linear layer."""
    return [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("output", nn.Linear(channels, classes))]
