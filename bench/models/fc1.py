"""A fully connected network with one hidden layer."""

from __future__ import annotations

import math

from torch import nn

from bench.core import registry
from bench.models.building_blocks import ACTIVATIONS, Activation, Shape, assemble


@registry.model("fc1")
def fc1(shape: Shape, classes: int, *, width: int = 1024, activation: Activation = "relu") -> nn.Sequential:
    """The thesis' FC1: inputs - 1024 - classes."""
    return assemble(
        [
            ("flatten", nn.Flatten()),
            ("stem", nn.Linear(math.prod(shape), width)),
            ("act", ACTIVATIONS[activation]()),
            ("output", nn.Linear(width, classes)),
        ]
    )
