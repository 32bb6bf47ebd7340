"""VGG with a width factor (Simonyan and Zisserman, 2015; thesis, Table 4.1)."""

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.models.building_blocks import NamedLayers, PerChannel, Shape, assemble, classifier, conv3x3

STAGES = ((2, 4), (2, 8), (3, 16), (3, 32), (3, 32))  # convolutions, and channels in units of the width factor


@registry.model("vgg")
def vgg(
    shape: Shape,
    classes: int,
    *,
    width: int = 8,
    batchnorm: bool = True,
    mean: PerChannel = (),
    std: PerChannel = (),
) -> nn.Sequential:
    """VGG(w), thesis table 4.1: 13 convolutions 3x3 in five stages that end with 2x2 max pooling, and a linear layer.

    width: w, the width factor; the thesis uses 8, and the original VGG-16 corresponds to 16. batchnorm: after each
    convolution; the table does not say whether there is one. mean, std: of each channel, for the normalisation; empty
    for none.
    """
    channels, height, size = shape
    if min(height, size) < 2 ** len(STAGES) or width < 1:
        raise UserError("model 'vgg' halves the image size five times: it takes at least 32x32 pixels, and width >= 1")
    layers: NamedLayers = []
    for stage, (depth, factor) in enumerate(STAGES, start=1):
        for number in range(1, depth + 1):
            name = "stem" if not layers else f"conv{stage}_{number}"
            layers.append((name, conv3x3(channels, factor * width, bias=not batchnorm)))
            channels = factor * width
            if batchnorm:
                layers.append((f"bn{stage}_{number}", nn.BatchNorm2d(channels)))
            layers.append((f"act{stage}_{number}", nn.ReLU()))
        layers.append((f"pool{stage}", nn.MaxPool2d(2)))
    return assemble([*layers, *classifier(channels, classes)], mean, std)
