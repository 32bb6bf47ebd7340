"""Fully connected networks."""

import math
from itertools import pairwise

from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.core.layers import TwoLogits
from bench.models.building_blocks import ACTIVATIONS, Activation, NamedLayers, Shape, assemble


@registry.model("mlp")
def mlp(
    shape: Shape,
    classes: int,
    *,
    hidden: tuple[int, ...] = (100, 100, 100),
    activation: Activation = "relu",
    scalar: bool = False,
) -> nn.Sequential:
    """inputs - 100 - 100 - 100 - classes: the networks of the thesis' table 3.2.

    hidden: units of each hidden layer. activation: after each hidden layer. scalar: one output f for two classes, with
    the logits -f/2 and f/2.
    """
    if scalar and classes != 2:
        raise UserError(
            f"a scalar output is for two classes, not {classes}; use a data set of two, as mnist:classes=0+1"
        )
    if not hidden or min(hidden) < 1:
        raise UserError(f"model 'mlp' needs hidden layers of at least one unit, as hidden=100,100, not {hidden}")
    layers: NamedLayers = [("flatten", nn.Flatten())]
    for number, (before, after) in enumerate(pairwise((math.prod(shape), *hidden)), start=1):
        layers += [("stem" if number == 1 else f"fc{number}", nn.Linear(before, after))]
        layers += [(f"act{number}", ACTIVATIONS[activation]())]
    output: NamedLayers = [("output", nn.Linear(hidden[-1], 1 if scalar else classes))]
    return assemble([*layers, *output, *([("logits", TwoLogits())] if scalar else [])])


@registry.model("fc1")
def fc1(
    shape: Shape, classes: int, *, width: int = 1024, activation: Activation = "relu", scalar: bool = False
) -> nn.Sequential:
    """The thesis' FC1: inputs - 1024 - classes.

    width: units of the hidden layer. activation: after each hidden layer. scalar: one output f for two classes, with
    the logits -f/2 and f/2.
    """
    return mlp(shape, classes, hidden=(width,), activation=activation, scalar=scalar)
