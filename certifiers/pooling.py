"""Max pooling as pairwise maxima, which become ReLUs: max(a, b) = b + relu(a - b)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.core.errors import UserError
from certifiers import layers
from certifiers.activations import RELU
from certifiers.graph import Graph
from certifiers.joins import Add, Maximum
from certifiers.layers import Scale
from certifiers.linear_forms import Pair


def maximum(graph: Graph, a: int, b: int, valid: Tensor | None = None) -> int:
    """Add the node max(a, b), which is b where `valid` is False."""
    like = graph.image
    difference = graph.add(Add(), [a, graph.add(Scale(like.new_tensor(-1.0), like.new_tensor(0.0)), [b])])
    if valid is not None:
        difference = graph.add(Scale(valid.to(like), like.new_tensor(0.0)), [difference])
    return graph.add(Maximum(valid), [graph.add(RELU, [difference]), b, a])


def max_pool(graph: Graph, node: int, size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> int:
    """Max pooling, first over the rows of each window, then over its columns."""
    for axis in (0, 1):
        node = _along(graph, node, axis, size[axis], stride[axis], padding[axis], dilation[axis])
    return node


def _along(graph: Graph, node: int, axis: int, size: int, stride: int, padding: int, dilation: int) -> int:
    """Max pooling with windows of one row or column."""
    if (size, stride, padding) == (1, 1, 0):
        return node
    shape = graph.shape(node)
    pairs = [(each, other) if axis == 0 else (other, each) for each, other in ((size, 1), (stride, 1), (padding, 0))]
    spread = (dilation, 1) if axis == 0 else (1, dilation)
    entries = []
    for k in range(size):
        offset = (k, 0) if axis == 0 else (0, k)
        entry = layers.select(shape[0], offset, pairs[0], pairs[1], pairs[2], spread, graph.image)
        entries.append(graph.add(entry, [node]))
    if padding == 0:
        while len(entries) > 1:
            halves = zip(entries[::2], entries[1::2], strict=False)
            entries = [maximum(graph, a, b) for a, b in halves] + entries[len(entries) // 2 * 2 :]
        return entries[0]
    # entries beyond the border are ignored, so the first entry of every window must be inside the image
    valid = _inside(graph.shape(entries[0])[1 + axis], shape[1 + axis], size, stride, padding, dilation)
    always = [k for k in range(size) if all(valid[k])]
    if not always:
        raise UserError("its padding is so large that no entry of its windows is always inside the image")
    result = entries[always[0]]
    for k in range(size):
        if k != always[0]:
            mask = torch.tensor(valid[k], device=graph.image.device).reshape((-1, 1) if axis == 0 else (1, -1))
            result = maximum(graph, entries[k], result, None if all(valid[k]) else mask)
    return result


def _inside(windows: int, length: int, size: int, stride: int, padding: int, dilation: int) -> Sequence[list[bool]]:
    """Whether entry k of each window is inside the image."""
    return [
        [0 <= stride * i - padding + dilation * k < length for i in range(windows)]
        for k in range(size)
    ]  # fmt: skip
