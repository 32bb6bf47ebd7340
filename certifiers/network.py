"""A model as a graph of layers that support bound propagation."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.core.errors import UserError
from certifiers.activations import Activation, Rectifier
from certifiers.graph import Graph, Node, apply, values_of
from certifiers.layers import Affine
from certifiers.operations import OPERATIONS, SUPPORTED
from certifiers.recording import Call, Recording, record


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in float64, in which parametrized weights (masked ones, for example) are plain parameters.

    A parametrized copy would read the weights of the original from torch's cache while it is enabled (mode_of).
    """
    twin = copy.deepcopy(model).double()
    for module in [module for module in twin.modules() if parametrize.is_parametrized(module)]:
        parametrizations: Any = module.parametrizations
        weights = {name: parametrizations[name]().detach() for name in parametrizations}
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        for name, weight in weights.items():
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return twin


class Network:
    """The layers of a model in topological order; the output of the last node is the logits.

    The model is run in eval mode on some images, and every operation on image-dependent tensors becomes a
    layer (certifiers/recording.py, certifiers/operations.py). `check_computes` (certifiers/faithfulness.py) compares
    the result with the model on other images.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        """images (N,C,H,W): bounds have their dtype and device; a single image is recorded twice.

        UserError names what cannot be bounded.
        """
        if images.dtype not in (torch.float32, torch.float64):
            raise UserError(f"images of {images.dtype} cannot be bounded; convert them, and the model, to float32")
        recording = record(model, images if len(images) > 1 else images.repeat(2, *[1] * (images.dim() - 1)))
        if len(recording.calls[recording.output].shape) != 2:
            raise UserError(f"{type(model).__name__} cannot be bounded: it must return logits (B,K)")
        if not recording.logits.isfinite().all():
            raise UserError(f"{type(model).__name__} cannot be bounded: its logits are not finite; check its weights")
        self.image = images[:1].detach()
        self.nodes = layers_of(recording, self.image)
        self.output, self.classes = len(self.nodes) - 1, self.nodes[-1].shape[0]
        self.activations = [k for k, node in enumerate(self.nodes) if isinstance(node.layer, Activation)]
        self._linear: list[bool] = []
        for node in self.nodes:
            if isinstance(node.layer, Affine):
                _ = node.layer.absolute  # computed here, so that gradients are always summed in the same order
            linear = not isinstance(node.layer, Activation) and all(self._linear[each] for each in node.inputs)
            self._linear.append(linear)

    def activation(self, k: int) -> Activation:
        layer = self.nodes[k].layer
        assert isinstance(layer, Activation)
        return layer

    @property
    def curved(self) -> list[int]:
        """The activations that are not piecewise linear: all but rectifiers."""
        return [k for k in self.activations if not isinstance(self.activation(k), Rectifier)]

    def is_linear(self, k: int) -> bool:
        """Whether a node's output is a linear function of the image."""
        return self._linear[k]

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """What the layers compute for images x (B,C,H,W): (B,K), without a gradient."""
        return self.values(x)[-1]

    def values(self, x: Tensor) -> list[Tensor]:
        """The output of each node, (B,*shape), for images x (B,C,H,W); differentiable."""
        return list(self._values_from(0, x).values())

    def separates(self, k: int) -> bool:
        """Whether the logits depend on the image through the output of node k only."""
        return all(each >= k for node in self.nodes[k + 1 :] for each in node.inputs)

    def logits_after(self, k: int, output: Tensor) -> Tensor:
        """The logits (B,K), given the output (B,*shape) of node k, for which `separates` holds; differentiable."""
        return self._values_from(k, output)[self.output]

    def _values_from(self, k: int, output: Tensor) -> dict[int, Tensor]:
        """By node: the outputs of node k and of those after it."""
        outputs = {k: output}
        for number, node in enumerate(self.nodes[k + 1 :], start=k + 1):
            outputs[number] = apply(node.layer, [outputs[each] for each in node.inputs])
        return outputs


def layers_of(recording: Recording, image: Tensor) -> list[Node]:
    """The nodes of a recording up to its logits, which are the last one. UserError names what cannot be bounded."""
    needed, pending = set[int](), [recording.output]
    while pending:
        call = pending.pop()
        if call not in needed:
            needed.add(call)
            pending += [value.call for value in values_of(recording.calls[call])]
    graph = Graph(recording, image)
    for k in sorted(needed - {0}):
        graph.set_node(k, _add(graph, recording.calls[k]))
    return graph.nodes


def _add(graph: Graph, call: Call) -> int:
    """Add the layers of one call: the node of its result."""
    graph.where = call.where
    what = call.where if call.where.startswith("layer") else f"'{call.operation}' in {call.where}"
    if call.problem is not None:
        raise UserError(f"{what} cannot be bounded: {call.problem}")
    if call.operation not in OPERATIONS:
        raise UserError(f"{what} cannot be bounded: {call.operation} is not among {SUPPORTED}")
    if len(call.shape) not in (2, 3, 4) or call.shape[0] != graph.examples:
        raise UserError(
            f"{what} cannot be bounded: its output for {graph.examples} images has shape {call.shape}; "
            f"it must be ({graph.examples},F) or ({graph.examples},C,H,W)"
        )
    try:
        node = OPERATIONS[call.operation](graph, call)
    except UserError as error:
        raise UserError(f"{what} cannot be bounded: {error}") from None
    if graph.shape(node) != call.shape[1:]:
        raise UserError(f"{what} cannot be bounded: {call.operation} broadcasts its input")
    return node
