"""Residual networks with pre-activation (He et al., 2016b), and their wide form (Zagoruyko and Komodakis, 2016)."""

from __future__ import annotations

from torch import nn

from bench.core import registry
from bench.core.layers import Residual
from bench.models.building_blocks import assemble, conv1x1, conv3x3


def preact_block(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """bn-relu-conv-bn-relu-conv plus the shortcut; where the shape changes, the shortcut starts after bn-relu."""
    activate = [nn.BatchNorm2d(channels_in), nn.ReLU()]
    body = [
        conv3x3(channels_in, channels_out, stride),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        conv3x3(channels_out, channels_out),
    ]
    if stride == 1 and channels_in == channels_out:
        return Residual(nn.Sequential(*activate, *body))
    return nn.Sequential(*activate, Residual(nn.Sequential(*body), conv1x1(channels_in, channels_out, stride)))


def preact_resnet(
    shape: tuple[int, int, int],
    classes: int,
    stem: int,
    stages: list[tuple[int, int]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Sequential:
    """A 3x3 stem, then `stages` of (blocks, channels), each after the first halving the size."""
    layers: list[tuple[str, nn.Module]] = [("stem", conv3x3(shape[0], stem))]
    channels = stem
    for stage, (depth, width) in enumerate(stages):
        blocks = []
        for block in range(depth):
            blocks.append(preact_block(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = width
        layers.append((f"stage{stage + 1}", nn.Sequential(*blocks)))
    layers += [
        ("bn", nn.BatchNorm2d(channels)),
        ("act", nn.ReLU()),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("output", nn.Linear(channels, classes)),
    ]
    return assemble(layers, mean, std)


@registry.model("preact-resnet18")
def preact_resnet18(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: int = 64,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Sequential:
    """PreActResNet-18 in its CIFAR form."""
    return preact_resnet(shape, classes, width, [(2, width * 2**k) for k in range(4)], mean, std)


@registry.model("wrn-28-10")
def wrn_28_10(
    shape: tuple[int, int, int],
    classes: int,
    *,
    widen: int = 10,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Sequential:
    """WideResNet-28-10."""
    return preact_resnet(shape, classes, 16, [(4, 16 * widen * 2**k) for k in range(3)], mean, std)


@registry.model("wrn-34-10")
def wrn_34_10(
    shape: tuple[int, int, int],
    classes: int,
    *,
    widen: int = 10,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Sequential:
    """WideResNet-34-10."""
    return preact_resnet(shape, classes, 16, [(5, 16 * widen * 2**k) for k in range(3)], mean, std)
