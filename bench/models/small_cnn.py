"""Two 3x3 convolutions and two linear layers, for small images (8x8 pixels)."""

from torch import nn

from bench.core import registry
from bench.models.building_blocks import ACTIVATIONS, Activation, NamedLayers, Shape, assemble


@registry.model("small-cnn")
def small_cnn(
    shape: Shape,
    classes: int,
    *,
    width: int = 16,
    hidden: int = 128,
    activation: Activation = "relu",
    batchnorm: bool = False,
) -> nn.Sequential:
    """conv 16 3x3, conv 32 3x3/2, fc 128, fc classes: the digits suite's network.

    width: channels of the first convolution. hidden: units of the linear layer. activation: after each hidden layer.
    batchnorm: whether batch norm follows each hidden layer.
    """
    channels, height, size = shape
    features = 2 * width * ((height + 1) // 2) * ((size + 1) // 2)
    blocks: list[tuple[nn.Module, nn.Module]] = [
        (nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)),
        (nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)),
        (nn.Linear(features, hidden), nn.BatchNorm1d(hidden)),
    ]
    layers: NamedLayers = []
    for name, (layer, norm) in zip(("stem", "conv2", "fc1"), blocks, strict=True):
        if name == "fc1":
            layers.append(("flatten", nn.Flatten()))
        layers += [(name, layer), *([(f"{name}_bn", norm)] if batchnorm else [])]
        layers.append((f"{name}_act", ACTIVATIONS[activation]()))
    return assemble([*layers, ("output", nn.Linear(hidden, classes))])
