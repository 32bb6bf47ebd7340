"""ResNets for 32x32 images (He et al., 2016): a 3x3 stem, no pooling after it."""

from itertools import pairwise

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.core.layers import Residual
from bench.models.building_blocks import PerChannel, Shape, assemble, classifier, conv1x1, conv3x3, residual_stages

Widths = tuple[int, ...]  # channels of each stage


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
    shape: Shape, classes: int, depths: tuple[int, ...], widths: Widths, mean: PerChannel, std: PerChannel
) -> nn.Sequential:
    """Stages of `depths` basic blocks with `widths` channels; from one to the next the size halves."""
    if len(widths) != len(depths) or min(widths) < 1:
        raise UserError(f"a residual network of {len(depths)} stages takes {len(depths)} widths, each at least 1")
    stem = [("stem", conv3x3(shape[0], widths[0])), ("bn", nn.BatchNorm2d(widths[0])), ("act", nn.ReLU())]
    stages = residual_stages(basic_block, widths[0], list(zip(depths, widths, strict=True)))
    return assemble([*stem, *stages, *classifier(widths[-1], classes)], mean, std)


def doubling(width: int, stages: int) -> Widths:
    """The channels of stages that double from one to the next."""
    return tuple(width * 2**k for k in range(stages))


@registry.model("resnet18")
def resnet18(
    shape: Shape, classes: int, *, width: int = 64, widths: Widths = (), mean: PerChannel = (), std: PerChannel = ()
) -> nn.Module:
    """ResNet-18 in its CIFAR form.

    width: channels of the first stage, which double from stage to stage. widths: channels of each stage, instead.
    mean, std: of each channel, for the normalisation; empty for none.
    """
    return resnet(shape, classes, (2, 2, 2, 2), widths or doubling(width, 4), mean, std)


@registry.model("resnet34")
def resnet34(
    shape: Shape, classes: int, *, width: int = 64, widths: Widths = (), mean: PerChannel = (), std: PerChannel = ()
) -> nn.Module:
    """ResNet-34 in its CIFAR form. The small ones of thesis Table 5.6 have widths=23+25+27+29 and widths=6+13+26+51.

    width: channels of the first stage, which double from stage to stage. widths: channels of each stage, instead.
    mean, std: of each channel, for the normalisation; empty for none.
    """
    return resnet(shape, classes, (3, 4, 6, 3), widths or doubling(width, 4), mean, std)


@registry.model("small-resnet")
def small_resnet(
    shape: Shape, classes: int, *, widths: Widths = (16, 24, 48), mean: PerChannel = (), std: PerChannel = ()
) -> nn.Module:
    """A 3x3 stem of stride 2 and two basic blocks of stride 2: 1.2 million multiply-adds for 32x32 colour images.

    widths: channels of the stem and of the two blocks. mean, std: of each channel, for the normalisation; empty for
    none.
    """
    if len(widths) != 3 or min(widths) < 1:
        raise UserError(f"model 'small-resnet' takes three widths, each at least 1, not {len(widths)}")
    stem = [("stem", conv3x3(shape[0], widths[0], 2)), ("bn", nn.BatchNorm2d(widths[0])), ("act", nn.ReLU())]
    blocks = [(f"block{k}", basic_block(a, b, 2)) for k, (a, b) in enumerate(pairwise(widths), start=1)]
    return assemble([*stem, *blocks, *classifier(widths[-1], classes)], mean, std)
