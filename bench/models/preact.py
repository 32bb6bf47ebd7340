"""Residual networks with pre-activation (He et al., 2016b) and wide ones (Zagoruyko and Komodakis, 2016)."""

from torch import nn

from bench.core import registry
from bench.core.layers import Residual
from bench.models.building_blocks import PerChannel, Shape, assemble, classifier, conv1x1, conv3x3, residual_stages


def preact_block(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """bn-relu-conv-bn-relu-conv plus the shortcut, which starts after the first bn-relu if the shape changes."""
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
    shape: Shape, classes: int, stem: int, stages: list[tuple[int, int]], mean: PerChannel, std: PerChannel
) -> nn.Sequential:
    """A 3x3 stem of `stem` channels, `stages` of (blocks, channels), bn-relu and the classifier."""
    first, channels = ("stem", conv3x3(shape[0], stem)), stages[-1][1]
    blocks = residual_stages(preact_block, stem, stages)
    last = [("bn", nn.BatchNorm2d(channels)), ("act", nn.ReLU()), *classifier(channels, classes)]
    return assemble([first, *blocks, *last], mean, std)


@registry.model("preact-resnet18")
def preact_resnet18(
    shape: Shape, classes: int, *, width: int = 64, mean: PerChannel = (), std: PerChannel = ()
) -> nn.Sequential:
    """PreActResNet-18 in its CIFAR form.

    width: channels of the first stage. mean, std: of each channel, for the normalisation; empty for none.
    """
    return preact_resnet(shape, classes, width, [(2, width * 2**k) for k in range(4)], mean, std)


@registry.model("wrn-28-10")
def wrn_28_10(shape: Shape, classes: int, *, widen: int = 10, mean: PerChannel = (), std: PerChannel = ()) -> nn.Module:
    """WideResNet-28-10.

    widen: the widening factor. mean, std: of each channel, for the normalisation; empty for none.
    """
    return preact_resnet(shape, classes, 16, [(4, 16 * widen * 2**k) for k in range(3)], mean, std)


@registry.model("wrn-34-10")
def wrn_34_10(shape: Shape, classes: int, *, widen: int = 10, mean: PerChannel = (), std: PerChannel = ()) -> nn.Module:
    """WideResNet-34-10.

    widen: the widening factor. mean, std: of each channel, for the normalisation; empty for none.
    """
    return preact_resnet(shape, classes, 16, [(5, 16 * widen * 2**k) for k in range(3)], mean, std)
