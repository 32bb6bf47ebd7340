"""ResNets for 32x32 images (He et al., 2016): a 3x3 stem, no pooling after it."""

from collections.abc import Sequence

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.core.layers import Residual
from bench.models.building_blocks import PerChannel, Shape, assemble, classifier, conv1x1, conv3x3, residual_stages


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
    shape: Shape, classes: int, stages: Sequence[tuple[int, int]], mean: PerChannel, std: PerChannel
) -> nn.Sequential:
    """Stages of (basic blocks, channels); from one to the next the size halves. The stem has the first's channels."""
    width = stages[0][1]
    stem = [("stem", conv3x3(shape[0], width)), ("bn", nn.BatchNorm2d(width)), ("act", nn.ReLU())]
    return assemble(
        [*stem, *residual_stages(basic_block, width, stages), *classifier(stages[-1][1], classes)], mean, std
    )


@registry.model("resnet18")
def resnet18(shape: Shape, classes: int, *, width: int = 64, mean: PerChannel = (), std: PerChannel = ()) -> nn.Module:
    """ResNet-18 in its CIFAR form.

    width: channels of the first stage. mean, std: of each channel, for the normalisation; empty for none.
    """
    return resnet(shape, classes, [(2, width * 2**k) for k in range(4)], mean, std)


@registry.model("resnet34")
def resnet34(
    shape: Shape,
    classes: int,
    *,
    width: int = 64,
    widths: tuple[int, ...] = (),
    mean: PerChannel = (),
    std: PerChannel = (),
) -> nn.Module:
    """ResNet-34 in its CIFAR form. The small ones of thesis Table 5.6 have widths=23+25+27+29 and widths=6+13+26+51.

    width: channels of the first stage, which double from one to the next. widths: channels of each of the four stages,
    instead of `width`. mean, std: of each channel, for the normalisation; empty for none.
    """
    channels = widths or tuple(width * 2**k for k in range(4))
    if len(channels) != 4 or min(channels) < 1:
        raise UserError(f"model 'resnet34' has four stages of at least one channel; widths is {widths}")
    return resnet(shape, classes, list(zip((3, 4, 6, 3), channels, strict=True)), mean, std)
