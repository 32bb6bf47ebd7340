"""ResNets for 32x32 images (He et al., 2016): a 3x3 stem, no first pooling."""

from __future__ import annotations

from torch import nn

from bench.core import registry
from bench.core.layers import Residual
from bench.models.building_blocks import assemble, conv1x1, conv3x3


def basic_block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """conv-bn-relu-conv-bn plus the shortcut, then relu."""
    branch = nn.Sequential(
        conv3x3(channels_in, channels_out, stride),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        conv3x3(channels_out, channels_out),
        nn.BatchNorm2d(channels_out),
    )
    shortcut = None
    if stride != 1 or channels_in != channels_out:
        shortcut = nn.Sequential(conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out))
    return nn.Sequential(Residual(branch, shortcut), nn.ReLU())


def resnet(
    shape: tuple[int, int, int],
    classes: int,
    depths: tuple[int, ...],
    width: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Sequential:
    """Four stages of `depths` basic blocks; the width doubles and the size halves from one to the next."""
    layers: list[tuple[str, nn.Module]] = [
        ("stem", conv3x3(shape[0], width)),
        ("bn", nn.BatchNorm2d(width)),
        ("act", nn.ReLU()),
    ]
    channels = width
    for stage, depth in enumerate(depths):
        blocks = []
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(basic_block(channels, width * 2**stage, stride))
            channels = width * 2**stage
        layers.append((f"stage{stage + 1}", nn.Sequential(*blocks)))
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("output", nn.Linear(channels, classes))]
    return assemble(layers, mean, std)


@registry.model("resnet18")
def resnet18(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: int = 64,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Sequential:
    """ResNet-18 in its CIFAR form."""
    return resnet(shape, classes, (2, 2, 2, 2), width, mean, std)


@registry.model("resnet34")
def resnet34(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: int = 64,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Sequential:
    """ResNet-34 in its CIFAR form."""
    return resnet(shape, classes, (3, 4, 6, 3), width, mean, std)
