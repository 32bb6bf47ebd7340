"""LeNet with a width factor."""

from torch import nn

from bench.core import registry
from bench.models.building_blocks import Shape, assemble


@registry.model("lenet")
def lenet(shape: Shape, classes: int, *, width: int = 16, kernel: int = 5) -> nn.Sequential:
    """LeNet(w), thesis table 4.1: conv 2w, conv 4w, fc 64w, fc classes; 2x2 max pooling after each convolution.

    width: w, the width factor. kernel: side of the convolutions.
    """
    channels, height, size = shape
    features = 4 * width * (height // 2 // 2) * (size // 2 // 2)
    return assemble(
        [
            ("stem", nn.Conv2d(channels, 2 * width, kernel, padding=kernel // 2)),
            ("act1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(2 * width, 4 * width, kernel, padding=kernel // 2)),
            ("act2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(features, 64 * width)),
            ("act3", nn.ReLU()),
            ("output", nn.Linear(64 * width, classes)),
        ]
    )
