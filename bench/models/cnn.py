"""The small convolutional network of the thesis' chapter 3."""

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.models.building_blocks import ACTIVATIONS, Activation, Shape, assemble


@registry.model("cnn")
def cnn(shape: Shape, classes: int, *, width: int = 16, activation: Activation = "relu") -> nn.Sequential:
    """The thesis' CNN: conv 16 4x4/2, conv 32 4x4/2, fc 100, fc classes.

    width: channels of the first convolution. activation: after each hidden layer.
    """
    channels, height, size = shape
    if min(height, size) < 4:
        raise UserError(f"model 'cnn' halves the image size twice: it needs at least 4x4 pixels, not {height}x{size}")
    act = ACTIVATIONS[activation]
    features = 2 * width * (height // 2 // 2) * (size // 2 // 2)
    return assemble(
        [
            ("stem", nn.Conv2d(channels, width, 4, stride=2, padding=1)),
            ("act1", act()),
            ("conv2", nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
            ("act2", act()),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(features, 100)),
            ("act3", act()),
            ("output", nn.Linear(100, classes)),
        ]
    )
