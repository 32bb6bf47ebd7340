"""Fully connected networks."""

import math
from itertools import pairwise

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.models.building_blocks import ACTIVATIONS, Activation, NamedLayers, Shape, assemble


@registry.model("mlp")
def mlp(
    shape: Shape, classes: int, *, hidden: tuple[int, ...] = (100, 100, 100), activation: Activation = "relu"
) -> nn.Sequential:
    """inputs - 100 - 100 - 100 - classes: the networks of the thesis' table 3.2.

    hidden: units of each hidden layer. activation: after each hidden layer.
    """
    if not hidden or min(hidden) < 1:
        raise UserError(f"model 'mlp' needs hidden layers of at least one unit, as hidden=100,100, not {hidden}")
    layers: NamedLayers = [("flatten", nn.Flatten())]
    for number, (before, after) in enumerate(pairwise((math.prod(shape), *hidden)), start=1):
        layers += [("stem" if number == 1 else f"fc{number}", nn.Linear(before, after))]
        layers += [(f"act{number}", ACTIVATIONS[activation]())]
    return assemble([*layers, ("output", nn.Linear(hidden[-1], classes))])


@registry.model("fc1")
def fc1(shape: Shape, classes: int, *, width: int = 1024, activation: Activation = "relu") -> nn.Sequential:
    """The thesis' FC1: inputs - 1024 - classes.

    width: units of the hidden layer. activation: after each hidden layer.
    """
    return mlp(shape, classes, hidden=(width,), activation=activation)
