"""Builds the graph of layers from a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.core.errors import UserError
from certifiers.activations import Activation
from certifiers.joins import Join
from certifiers.layers import Affine
from certifiers.recording import Call, Recording, Value

Layer = Affine | Join | Activation
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One layer (None for the image, the first node), the nodes that it is applied to, and the shape of its output."""

    name: str
    layer: Layer | None
    inputs: tuple[int, ...]
    shape: Shape


class Graph:
    """Nodes in topological order, and the node of each call of a recording."""

    def __init__(self, recording: Recording, image: Tensor) -> None:
        self.image, self.calls, self.transposed = image, recording.calls, recording.transposed
        self.examples = recording.calls[0].shape[0]
        self.nodes = [Node("the image", None, (), tuple(image.shape[1:]))]
        self.where = ""  # the layer that is being added
        self._of_call = {0: 0}

    def node(self, value: Value) -> int:
        """The node of an image-dependent tensor."""
        return self._of_call[value.call]

    def set_node(self, call: int, node: int) -> None:
        self._of_call[call] = node

    def shape(self, node: int) -> Shape:
        return self.nodes[node].shape

    def layer(self, node: int) -> Layer | None:
        return self.nodes[node].layer

    def add(self, layer: Layer, inputs: Sequence[int]) -> int:
        """Add a node and return its index; its shape is found by applying the layer to zeros."""
        if isinstance(layer, Activation) and len(self.shape(inputs[0])) == 2:
            raise UserError(f"its input has shape {self.shape(inputs[0])}; it must be (F,) or (C,H,W)")
        shape = tuple(apply(layer, [self.image.new_zeros(1, *self.shape(k)) for k in inputs]).shape[1:])
        self.nodes.append(Node(self.where, layer, tuple(inputs), shape))
        return len(self.nodes) - 1

    def replace(self, node: int, layer: Layer) -> int:
        """Replace the layer of a node, which no other node may use yet."""
        old = self.nodes[node]
        self.nodes[node] = Node(self.where, layer, old.inputs, old.shape)
        return node

    def is_only_use(self, value: Value) -> bool:
        """Whether a tensor is an argument of only one call, and its node is the last one."""
        uses = sum(value in values_of(call) for call in self.calls)
        return uses == 1 and self.node(value) == len(self.nodes) - 1


def apply(layer: Layer | None, inputs: Sequence[Tensor]) -> Tensor:
    """The output of a layer for inputs (B,*shape)."""
    if isinstance(layer, Join):
        return layer.forward(inputs)
    if isinstance(layer, Activation):
        return layer.function(inputs[0])
    assert layer is not None
    return layer.apply(inputs[0], layer.weight, layer.bias)


def values_of(call: Call) -> list[Value]:
    """The image-dependent arguments of a call."""
    flat: list[Any] = []
    for argument in call.arguments.values():
        flat += argument if isinstance(argument, list) else [argument]
    return [each for each in flat if isinstance(each, Value)]
