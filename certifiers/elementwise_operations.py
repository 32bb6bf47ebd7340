"""Torch's operations that can be bounded: activations and maxima.

An operation is a function `(graph, call) -> node`. It checks every argument that changes what is computed, and adds
the layers that the call becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from bench.core.errors import UserError
from certifiers import activations
from certifiers.activations import Activation
from certifiers.graph import Graph
from certifiers.operation import Operation, constant_for, image_argument, scaled
from certifiers.pooling import maximum
from certifiers.recording import Call, Value


def activation(make: Callable[[dict[str, Any]], Activation]) -> Operation:
    """An elementwise function of one input, made from the other arguments of the call."""
    return lambda graph, call: graph.add(make(call.arguments), [image_argument(graph, call, "self")])


def leaky_relu(graph: Graph, call: Call) -> int:
    leak = float(call.arguments["negative_slope"])
    if 0 <= leak <= 1:
        return graph.add(activations.leaky_relu(leak), [image_argument(graph, call, "self")])
    return graph.add(activations.prelu(graph.image.new_tensor(leak)), [image_argument(graph, call, "self")])


def prelu(graph: Graph, call: Call) -> int:
    node = image_argument(graph, call, "self")
    return graph.add(activations.prelu(constant_for(graph, call.arguments["weight"], node)), [node])


def elu(graph: Graph, call: Call) -> int:
    given = call.arguments
    alpha, scale = float(given["alpha"]), float(given.get("scale", 1.0))
    input_scale = float(given.get("input_scale", 1.0)) if call.operation == "elu" else 1 / alpha
    if min(alpha, scale, input_scale) <= 0:
        raise UserError("alpha and both scales must be positive")
    return graph.add(activations.elu(alpha, scale, input_scale), [image_argument(graph, call, "self")])


def clamp(graph: Graph, call: Call) -> int:
    """min(max(x, low), high) as two ReLUs: low + relu(x - low), then high - relu(high - x)."""
    given, node = call.arguments, image_argument(graph, call, "self")
    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    if call.operation == "threshold":
        low = given["threshold"]
        if given["value"] != low:
            raise UserError("its value must be equal to its threshold, so that it is continuous")
    return _clamp(graph, node, low, high)


def hardsigmoid(graph: Graph, call: Call) -> int:
    return _clamp(graph, scaled(graph, image_argument(graph, call, "self"), 1 / 6, 0.5), 0.0, 1.0)


def _clamp(graph: Graph, node: int, low: Any, high: Any) -> int:
    if low is not None and high is not None and not isinstance(low, Tensor) and not isinstance(high, Tensor):
        if low > high:
            raise UserError(f"its limits {low} and {high} are in the wrong order")
    elif low is not None and high is not None:
        raise UserError("its limits must be numbers")
    if low is not None:
        low = constant_for(graph, low, node)
        shifted = graph.add(activations.RELU, [scaled(graph, node, 1.0, -low)])
        node = scaled(graph, shifted, 1.0, low)
    if high is not None:
        high = constant_for(graph, high, node)
        shifted = graph.add(activations.RELU, [scaled(graph, node, -1.0, high)])
        node = scaled(graph, shifted, -1.0, high)
    return node


def extreme(graph: Graph, call: Call) -> int:
    both = [call.arguments["self"], call.arguments["other"]]
    if not all(isinstance(each, Value) and each.shape == call.shape for each in both):
        raise UserError("it must be of two image-dependent values of one shape")
    a, b = (graph.node(each) for each in both)
    if call.operation == "maximum":
        return maximum(graph, a, b)
    return scaled(graph, maximum(graph, scaled(graph, a, -1.0, 0.0), scaled(graph, b, -1.0, 0.0)), -1.0, 0.0)


def softplus(given: Mapping[str, Any]) -> activations.Curve:
    beta, threshold = float(given["beta"]), float(given["threshold"])
    if beta <= 0:
        raise UserError(f"softplus has beta={beta:g}; only a positive beta is supported")
    return activations.softplus(beta, threshold)


ELEMENTWISE: dict[str, Operation] = {
    "relu": activation(lambda _: activations.RELU),
    "abs": activation(lambda _: activations.ABS),
    "sigmoid": activation(lambda _: activations.SIGMOID),
    "tanh": activation(lambda _: activations.TANH),
    "gelu": activation(lambda given: activations.gelu(given["approximate"])),
    "silu": activation(lambda _: activations.silu()),
    "softplus": activation(softplus),
    "leaky_relu": leaky_relu,
    "_prelu_kernel": prelu,
    **dict.fromkeys(("elu", "celu"), elu),
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min", "clamp_max", "threshold"), clamp),
    "hardsigmoid": hardsigmoid,
    **dict.fromkeys(("maximum", "minimum"), extreme),
}
