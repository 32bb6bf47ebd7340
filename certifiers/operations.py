"""Torch's operations that can be bounded: linear layers, sums, products, shapes.

An operation is a function `(graph, call) -> node`. It checks every argument that changes what is computed, and adds
the layers that the call becomes.
"""

from __future__ import annotations

import math

from torch import Tensor

from bench.core.errors import UserError
from certifiers import layers
from certifiers.elementwise_operations import ELEMENTWISE
from certifiers.graph import Graph
from certifiers.image_operations import IMAGE
from certifiers.joins import Add, Concatenate
from certifiers.layers import Scale
from certifiers.operation import Operation, constant_for, in_shape_of, scaled
from certifiers.recording import Call, Value

SUPPORTED = (
    "linear, (transposed) convolution, batch norm, pooling, sums, concatenation, arithmetic with constants, "
    "piecewise-linear activations, sigmoid, tanh, GELU, SiLU, ELU, softplus"
)


def linear(graph: Graph, call: Call) -> int:
    given = call.arguments
    image, weight = given.get("mat1", given.get("self")), given["mat2"]
    bias = given["self"] if call.operation == "addmm" else None
    if not isinstance(image, Value) or isinstance(weight, Value) or isinstance(bias, Value):
        raise UserError("it multiplies two image-dependent values")
    if given.get("beta", 1) != 1 or given.get("alpha", 1) != 1:
        raise UserError("beta and alpha must be 1")
    original = graph.transposed.get(id(weight))
    weight = weight.t() if original is None else original
    if bias is not None and bias.dim() != 1:
        raise UserError("its bias must have one axis")
    return graph.add(layers.Linear(weight, bias), [graph.node(image)])


def concatenate(graph: Graph, call: Call) -> int:
    given = call.arguments
    if not all(isinstance(each, Value) for each in given["tensors"]) or given["dim"] not in (1, 1 - len(call.shape)):
        raise UserError("only image-dependent values can be concatenated, along the channels")
    return graph.add(Concatenate(), [graph.node(each) for each in given["tensors"]])


def add(graph: Graph, call: Call) -> int:
    given = call.arguments
    a, b, factor = given["self"], given["other"], float(given.get("alpha", 1))
    a, b = (b, a) if call.operation == "rsub" else (a, b)  # rsub is other - alpha self
    sign = (1.0 if call.operation == "add" else -1.0) * factor
    if isinstance(a, Value) and isinstance(b, Value):
        if a.shape != b.shape:
            raise UserError(f"its inputs have different shapes {a.shape[1:]} and {b.shape[1:]}")
        second = graph.node(b) if sign == 1 else scaled(graph, graph.node(b), sign, 0.0)
        return graph.add(Add(), [graph.node(a), second])
    if isinstance(a, Value):
        node = graph.node(a)
        return scaled(graph, node, 1.0, sign * constant_for(graph, b, node))
    node = graph.node(b)
    return scaled(graph, node, sign, constant_for(graph, a, node))


def multiply(graph: Graph, call: Call) -> int:
    given = call.arguments
    a, b = given["self"], given.get("other", -1.0)
    if given.get("rounding_mode") is not None:
        raise UserError("it rounds")
    if call.operation == "mul" and not isinstance(a, Value):
        a, b = b, a
    if not isinstance(a, Value) or isinstance(b, Value):
        raise UserError("it multiplies or divides by an image-dependent value")
    node = graph.node(a)
    factor = constant_for(graph, b, node)
    divides = call.operation == "div"
    before = graph.layer(node)
    if divides and isinstance(before, Scale) and _is_one(before.weight) and graph.is_only_use(a):
        # (x - mean) / std in one step
        return graph.replace(node, Scale(1 / factor, before.bias / factor))
    return scaled(graph, node, 1 / factor if divides else factor, 0.0)


def reshape(graph: Graph, call: Call) -> int:
    """A new shape for the same values in the same order; their number must be equal."""
    name, value = call.operation, call.arguments["self"]
    assert isinstance(value, Value)
    if math.prod(call.shape) != math.prod(value.shape):
        raise UserError("it repeats or leaves out values")
    if call.arguments.get("dtype") not in (None, graph.image.dtype) or (name == "view" and "dtype" in call.arguments):
        raise UserError(f"it converts to {call.arguments['dtype']}")
    return in_shape_of(graph, graph.node(value), call)


def _is_one(weight: Tensor) -> bool:
    return weight.dim() == 0 and float(weight) == 1


OPERATIONS: dict[str, Operation] = {
    **ELEMENTWISE,
    **IMAGE,
    **dict.fromkeys(("addmm", "mm"), linear),
    "cat": concatenate,
    **dict.fromkeys(("add", "sub", "rsub"), add),
    **dict.fromkeys(("mul", "div", "neg"), multiply),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "expand", "slice"), reshape),
    **dict.fromkeys(("clone", "detach", "alias", "contiguous", "_to_copy"), reshape),
}
