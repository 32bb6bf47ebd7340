"""Torch's operations that can be bounded: convolution, normalization, pooling.

An operation is a function `(graph, call) -> node`. It checks every argument that changes what is computed, and adds
the layers that the call becomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.core.errors import UserError
from certifiers import layers
from certifiers.graph import Graph
from certifiers.layers import Scale
from certifiers.linear_forms import Kernel, Pair
from certifiers.operation import Operation, channels_of, image_argument, in_shape_of, pair, scaled
from certifiers.pooling import max_pool
from certifiers.recording import Call, Value


def convolution(graph: Graph, call: Call) -> int:
    given, node = call.arguments, image_argument(graph, call, "input")
    weight, bias = given["weight"], given["bias"]
    if isinstance(weight, Value) or isinstance(bias, Value):
        raise UserError("its weights depend on the image")
    stride, padding, dilation = (pair(given[name]) for name in ("stride", "padding", "dilation"))
    kernel = Kernel(weight, stride, padding, dilation, given["groups"])
    if given["transposed"]:
        return graph.add(layers.TransposedConv(kernel, bias, pair(given["output_padding"])), [node])
    return graph.add(layers.Conv(kernel, bias), [node])


def pad(graph: Graph, call: Call) -> int:
    """Zero padding, as a convolution that selects one entry of each window."""
    given, node = call.arguments, image_argument(graph, call, "self")
    sides = [*given["pad"], 0, 0, 0, 0][:4] if len(given["pad"]) <= 4 else None
    if given["value"] != 0 or sides is None or min(sides) < 0:
        raise UserError("only zeros can be added, on the four sides of an image")
    left, right, top, bottom = sides
    padding = (max(top, bottom), max(left, right))
    size = (2 * padding[0] - top - bottom + 1, 2 * padding[1] - left - right + 1)
    offset = (padding[0] - top, padding[1] - left)
    channels = channels_of(graph, node)
    return graph.add(layers.select(channels, offset, size, (1, 1), padding, (1, 1), graph.image), [node])


def batch_norm(graph: Graph, call: Call) -> int:
    """Batch norm with the running statistics, as in eval mode."""
    given, node = call.arguments, image_argument(graph, call, "input")
    mean, var = given.get("running_mean"), given.get("running_var")
    if mean is None or var is None or given.get("training", False):
        raise UserError("it has no running statistics; set track_running_stats=True")
    eps = given.get("eps", given.get("epsilon"))
    factor = (var + eps).rsqrt()
    factor = factor if given["weight"] is None else factor * given["weight"]
    shift = -mean * factor
    shift = shift if given["bias"] is None else shift + given["bias"]
    shape = (-1, *[1] * (len(graph.shape(node)) - 1))
    return graph.add(Scale(factor.reshape(shape), shift.reshape(shape)), [node])


def average_pool(graph: Graph, call: Call) -> int:
    given, node = call.arguments, image_argument(graph, call, "self")
    channels, size = channels_of(graph, node), pair(given["kernel_size"])
    stride, padding = pair(given["stride"] or size), pair(given["padding"])
    if given["ceil_mode"] or given["divisor_override"] or (padding != (0, 0) and not given["count_include_pad"]):
        raise UserError(
            "average pooling is supported without ceil_mode and divisor_override and with count_include_pad only"
        )
    return graph.add(layers.average(channels, size, stride, padding, graph.image), [node])


def adaptive_average_pool(graph: Graph, call: Call) -> int:
    node = image_argument(graph, call, "self")
    channels, size = channels_of(graph, node), _window(graph, node, call.arguments["output_size"])
    return graph.add(layers.average(channels, size, size, (0, 0), graph.image), [node])


def mean(graph: Graph, call: Call) -> int:
    """The mean over one or both axes of an image."""
    node, size = _averaged(graph, call)
    averaged = layers.average(channels_of(graph, node), size, size, (0, 0), graph.image)
    return in_shape_of(graph, graph.add(averaged, [node]), call)


def total(graph: Graph, call: Call) -> int:
    node, size = _averaged(graph, call)
    averaged = layers.average(channels_of(graph, node), size, size, (0, 0), graph.image)
    return in_shape_of(graph, scaled(graph, graph.add(averaged, [node]), float(math.prod(size)), 0.0), call)


def maximum_pool(graph: Graph, call: Call) -> int:
    given, node = call.arguments, image_argument(graph, call, "self")
    size = pair(given["kernel_size"])
    stride, padding, dilation = pair(given["stride"] or size), pair(given["padding"]), pair(given["dilation"])
    channels_of(graph, node)
    pooled = max_pool(graph, node, size, stride, padding, dilation)
    if graph.shape(pooled) != call.shape[1:]:
        raise UserError("ceil_mode is not supported where it adds windows")
    return pooled


def adaptive_maximum_pool(graph: Graph, call: Call) -> int:
    node = image_argument(graph, call, "self")
    size = _window(graph, node, call.arguments["output_size"])
    return max_pool(graph, node, size, size, (0, 0), (1, 1))


def amax(graph: Graph, call: Call) -> int:
    node, size = _averaged(graph, call)
    return in_shape_of(graph, max_pool(graph, node, size, size, (0, 0), (1, 1)), call)


def _window(graph: Graph, node: int, output: Sequence[int]) -> Pair:
    """The window size of adaptive pooling to the given output size."""
    size = graph.shape(node)[1:]
    if any(have % want for have, want in zip(size, output, strict=True)):
        raise UserError(f"its output size {tuple(output)} does not divide its input size {tuple(size)}")
    return pair([have // want for have, want in zip(size, output, strict=True)])


def _averaged(graph: Graph, call: Call) -> tuple[int, Pair]:
    """The input of a reduction over axes of an image, and its window."""
    node, given = image_argument(graph, call, "self"), call.arguments
    axes = {axis % (1 + len(graph.shape(node))) for axis in given.get("dim") or ()}
    if len(graph.shape(node)) == 2:  # one axis of the image was reduced before
        node = graph.add(layers.Reshape((graph.shape(node)[0], 1, graph.shape(node)[1])), [node])
        axes = {axis + 1 for axis in axes}
    channels_of(graph, node)
    if not axes or not axes <= {2, 3} or given.get("dtype") is not None:
        raise UserError("only the height and the width of an image can be reduced")
    _, height, width = graph.shape(node)
    return node, (height if 2 in axes else 1, width if 3 in axes else 1)


IMAGE: dict[str, Operation] = {
    "convolution": convolution,
    "constant_pad_nd": pad,
    **dict.fromkeys(
        ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training"),
        batch_norm,
    ),
    "avg_pool2d": average_pool,
    "_adaptive_avg_pool2d": adaptive_average_pool,
    "mean": mean,
    "sum": total,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d"), maximum_pool),
    "adaptive_max_pool2d": adaptive_maximum_pool,
    "amax": amax,
}
