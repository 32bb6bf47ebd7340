"""ResNets for large images (He et al., 2016): a 7x7 stem of stride 2, and max pooling after it."""

from collections.abc import Callable

from torch import nn

from bench.core import registry
from bench.core.layers import Residual
from bench.models.building_blocks import PerChannel, Shape, assemble, classifier, conv1x1, conv3x3, residual_stages
from bench.models.resnet import basic_block, doubling

EXPANSION = 4  # channels of a bottleneck's output, in units of those of its 3x3 convolution


def bottleneck(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """conv 1x1, conv 3x3 with the stride, conv 1x1, each with batch norm, plus the shortcut, then relu."""
    inner = channels_out // EXPANSION
    branch = nn.Sequential(
        conv1x1(channels_in, inner),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        conv3x3(inner, inner, stride),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        conv1x1(inner, channels_out),
        nn.BatchNorm2d(channels_out),
    )
    shortcut = None
    if stride != 1 or channels_in != channels_out:
        shortcut = nn.Sequential(conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out))
    return nn.Sequential(Residual(branch, shortcut), nn.ReLU())


def imagenet_form(
    shape: Shape, classes: int, block: Callable[[int, int, int], nn.Module], stages: list[tuple[int, int]], stem: int,
    mean: PerChannel, std: PerChannel,
) -> nn.Sequential:  # fmt: skip
    """stem: its channels; stages of (blocks, channels). The output of the stem has a quarter of the image's sides."""
    first = [
        ("stem", nn.Conv2d(shape[0], stem, 7, stride=2, padding=3, bias=False)),
        ("bn", nn.BatchNorm2d(stem)),
        ("act", nn.ReLU()),
        ("stem_pool", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    return assemble([*first, *residual_stages(block, stem, stages), *classifier(stages[-1][1], classes)], mean, std)


@registry.model("imagenet-resnet18")
def imagenet_resnet18(
    shape: Shape, classes: int, *, width: int = 64, mean: PerChannel = (), std: PerChannel = ()
) -> nn.Module:
    """ResNet-18 in its ImageNet form.

    width: channels of the first stage. mean, std: of each channel, for the normalisation; empty for none.
    """
    return imagenet_form(shape, classes, basic_block, [(2, w) for w in doubling(width, 4)], width, mean, std)


@registry.model("imagenet-resnet50")
def imagenet_resnet50(
    shape: Shape, classes: int, *, width: int = 64, mean: PerChannel = (), std: PerChannel = ()
) -> nn.Module:
    """ResNet-50 in its ImageNet form, with the stride in the 3x3 convolution of a block.

    width: channels of the first stage's 3x3 convolutions. mean, std: of each channel, for the normalisation; empty for
    none.
    """
    widths = doubling(EXPANSION * width, 4)
    stages = list(zip((3, 4, 6, 3), widths, strict=True))
    return imagenet_form(shape, classes, bottleneck, stages, width, mean, std)
