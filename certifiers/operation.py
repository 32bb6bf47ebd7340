"""Helpers of the operations: their arguments, as nodes of the graph and as constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.core.errors import UserError
from certifiers import layers
from certifiers.graph import Graph
from certifiers.layers import Scale
from certifiers.linear_forms import Pair
from certifiers.recording import Call, Value

Operation = Callable[[Graph, Call], int]  # checks a call's arguments, adds its layers, returns the node of its result


def image_argument(graph: Graph, call: Call, name: str) -> int:
    """The node of the argument `name`; UserError if it does not depend on the image."""
    value = call.arguments[name]
    if not isinstance(value, Value):
        raise UserError("its first argument does not depend on the image")
    return graph.node(value)


def constant_for(graph: Graph, value: Any, node: int) -> Tensor:
    """`value` as a tensor that broadcasts against the node's output, without the batch axis."""
    if isinstance(value, Value):
        raise UserError("its second argument depends on the image")
    constant = value if isinstance(value, Tensor) else graph.image.new_tensor(value)
    axes, shape = 1 + len(graph.shape(node)), graph.shape(node)
    if constant.dim() > axes or (constant.dim() == axes and len(constant) != 1):
        raise UserError(f"its constant has shape {tuple(constant.shape)}, which does not fit {shape}")
    constant = constant.reshape(constant.shape[1:]) if constant.dim() == axes else constant
    if torch.broadcast_shapes(constant.shape, shape) != shape:
        raise UserError(f"its constant has shape {tuple(constant.shape)}, which does not fit {shape}")
    return constant.to(graph.image.dtype)


def scaled(graph: Graph, node: int, factor: Tensor | float, shift: Tensor | float) -> int:
    """Add the layer factor * x + shift, elementwise, after `node`: its node. Tensors broadcast against its output."""
    factor, shift = (each if isinstance(each, Tensor) else graph.image.new_tensor(each) for each in (factor, shift))
    return graph.add(Scale(factor, shift), [node])


def in_shape_of(graph: Graph, node: int, call: Call) -> int:
    """The node with the shape of the call's output: `node` itself, or a reshape of it that is added.

    UserError if the output does not have one row for each recorded image.
    """
    if call.shape[0] != graph.examples:
        raise UserError(f"its output for {graph.examples} images has shape {call.shape}")
    shape = call.shape[1:]
    return node if graph.shape(node) == shape else graph.add(layers.Reshape(shape), [node])


def channels_of(graph: Graph, node: int) -> int:
    if len(graph.shape(node)) != 3:
        raise UserError(f"its input has shape {graph.shape(node)}; it must be (C,H,W)")
    return graph.shape(node)[0]


def pair(value: Sequence[int] | int) -> Pair:
    """(height, width) of an argument that is a number or a sequence of one or two; UserError for more."""
    values = [value] if isinstance(value, int) else list(value)
    if len(values) not in (1, 2):
        raise UserError("only two-dimensional images are supported")
    return values[0], values[-1]
