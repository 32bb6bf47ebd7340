"""Two 3x3 convolutions and two linear layers, for images of 8x8 pixels or so."""

from __future__ import annotations

from torch import nn

from bench.core import registry
from bench.models.parts import ACTIVATIONS, Activation, assemble


@registry.model("small-cnn")
def small_cnn(
    shape: tuple[int, int, int], classes: int, *, width: int = 16, hidden: int = 128, activation: Activation = "relu"
) -> nn.Sequential:
    """conv 16 3x3, conv 32 3x3/2, fc 128, fc classes: the digits suite's network."""
    channels, height, size = shape
    act = ACTIVATIONS[activation]
    features = 2 * width * ((height + 1) // 2) * ((size + 1) // 2)
    return assemble(
        [
            ("stem", nn.Conv2d(channels, width, 3, padding=1)),
            ("act1", act()),
            ("conv2", nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)),
            ("act2", act()),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(features, hidden)),
            ("act3", act()),
            ("output", nn.Linear(hidden, classes)),
        ]
    )
