"""A model traced into a graph of the layers through which bounds can be propagated."""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from bench.core.contracts import Certifier, mode_of
from bench.core.errors import UserError
from bench.core.layers import Normalize
from bench.core.threat import ThreatModel
from certifiers import layers
from certifiers.layers import Activation, Add, Layer

SUPPORTED = "Linear, Conv2d, BatchNorm, AvgPool2d, Flatten, additions, ReLU, LeakyReLU, Sigmoid and Tanh"
Shape = tuple[int, ...]

# how a module becomes a layer, given one of its inputs; None if it does nothing in eval mode
MODULES: dict[type[nn.Module], Callable[[Any, Tensor], Layer | None]] = {
    nn.Linear: layers.linear,
    nn.Conv2d: lambda module, _: layers.conv(module),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), layers.batch_norm),
    nn.AvgPool2d: layers.average_pool,
    nn.AdaptiveAvgPool2d: layers.global_pool,
    Normalize: lambda module, _: layers.Scale(1 / module.std, -module.mean / module.std),
    nn.ReLU: lambda *_: layers.relu(),
    nn.LeakyReLU: lambda module, _: layers.relu(module.negative_slope),
    nn.Sigmoid: lambda *_: layers.SIGMOID,
    nn.Tanh: lambda *_: layers.TANH,
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), lambda *_: None),
}
ACTIVATIONS: dict[Any, Layer] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), layers.relu()),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), layers.SIGMOID),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), layers.TANH),
}
RESHAPE = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
SUM = (operator.add, operator.iadd, torch.add, "add")


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in float64, in which parametrized weights (masked ones, for example) are plain parameters.

    A parametrized copy would get the weights of the original from torch's cache if that is on (mode_of).
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


@dataclass(frozen=True)
class Node:
    """One layer (None for the image, the first node), the nodes that it is applied to, and the shape of its output."""

    name: str
    layer: Layer | None
    inputs: tuple[int, ...]
    shape: Shape


class Network:
    """The layers of a model, each after its inputs; the output of the last node is the logits."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        """Trace a model in eval mode with one image (1,C,H,W). UserError names a layer that cannot be bounded."""
        try:
            graph = _Tracer().trace(model)
            shapes = _Shapes(model, graph)
            with mode_of(model, training=False), torch.no_grad():
                shapes.run(image[:1].expand(2, *image.shape[1:]))
        except (fx.proxy.TraceError, TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{type(model).__name__} cannot be bounded: its forward is not a fixed sequence of layers; "
                f"build it from {SUPPORTED}"
            ) from error
        self.image = image[:1]  # its dtype and device are those of the bounds
        self.nodes: list[Node] = []
        index: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op == "output":
                self._end_at(index.get(node.args[0]))
            elif node in shapes.of:
                inputs = tuple(index[each] for each in node.all_input_nodes if each in index)
                first = node.op == "placeholder"
                layer = None if first else self._layer(model, node, inputs, shapes.of[node])
                if layer is None and not first:
                    index[node] = inputs[0]
                else:
                    index[node] = len(self.nodes)
                    self.nodes.append(Node(str(node.target), layer, inputs, shapes.of[node][1:]))
        self.output, self.classes = len(self.nodes) - 1, self.nodes[-1].shape[0]
        self.activations = [k for k, node in enumerate(self.nodes) if isinstance(node.layer, Activation)]
        self._check(model)

    def activation(self, k: int) -> Activation:
        layer = self.nodes[k].layer
        assert isinstance(layer, Activation)
        return layer

    def is_linear(self, k: int) -> bool:
        """Whether a node's output is a linear function of the image."""
        node = self.nodes[k]
        return not isinstance(node.layer, Activation) and all(self.is_linear(each) for each in node.inputs)

    def _check(self, model: nn.Module) -> None:
        """UserError if the layers in sequence do not compute what the model does (because of a hook, for example)."""
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(self.image.shape, generator=generator).to(self.image)
        outputs = [image]
        with mode_of(model, training=False), torch.no_grad():
            logits = model(image)
            for node in self.nodes[1:]:
                inputs = [outputs[k] for k in node.inputs]
                if isinstance(node.layer, Add):
                    outputs.append(inputs[0] + inputs[1])
                else:
                    assert node.layer is not None
                    outputs.append(node.layer.interval(inputs[0], torch.zeros_like(inputs[0]))[0])
        if not logits.isfinite().all():
            raise UserError(f"{type(model).__name__} cannot be bounded: its logits are not finite; check its weights")
        if not torch.allclose(outputs[-1], logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
            raise UserError(
                f"{type(model).__name__} cannot be bounded: it does not compute what its layers do in sequence; "
                f"build it from plain {SUPPORTED}, without hooks and in-place operations"
            )

    def _end_at(self, last: int | None) -> None:
        if last is None or len(self.nodes[last].shape) != 1:
            raise UserError("the model cannot be bounded: it must return logits (B,K)")
        del self.nodes[last + 1 :]

    def _layer(self, model: nn.Module, node: fx.Node, inputs: tuple[int, ...], output: Shape) -> Layer | None:
        """The layer of a node; None if it does nothing. output: the shape of the output for two images."""
        before = [self.nodes[k].shape for k in inputs]
        name, kind, reason = getattr(node.target, "__name__", node.target), node.op, f"supported are {SUPPORTED}"
        shape = output[1:]
        try:
            if output[0] != 2 or len(shape) not in (1, 3):
                raise UserError(f"its output for two images has shape {output}; it must be (2,F) or (2,C,H,W)")
            if node.op == "call_module" and len(before) == 1:
                module = model.get_submodule(str(node.target))
                kind = type(module).__name__
                if isinstance(module, nn.Flatten):
                    return layers.Reshape(shape)
                for module_type, make in MODULES.items():
                    if isinstance(module, module_type):
                        return make(module, self.image.new_empty(before[0]))
            elif node.target in SUM and len(before) == 2 and before[0] == before[1] == shape:
                return Add()
            elif node.target in RESHAPE and len(before) == 1:
                return layers.Reshape(shape)
            elif node.target in ACTIVATIONS and len(before) == 1:
                return ACTIVATIONS[node.target]
        except UserError as error:
            reason = str(error)
        raise UserError(f"layer '{name}' ({kind}) cannot be bounded: {reason}")


@dataclass(frozen=True, kw_only=True)
class NetworkCertifier(Certifier):
    """A certifier that traces the model into its layers."""

    def check_network(self, network: Network) -> None:
        """UserError if this certifier does not support one of the layers."""

    def check_fits(self, model: nn.Module, shape: tuple[int, ...], threat: ThreatModel) -> None:
        super().check_fits(model, shape, threat)
        weight = next(model.parameters(), torch.zeros(()))
        self.check_network(Network(model, torch.zeros((1, *shape), device=weight.device, dtype=weight.dtype)))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*MODULES, nn.Flatten)) or super().is_leaf_module(module, name)


class _Shapes(fx.Interpreter):
    """Runs the graph and records the shape of each node that returns a tensor."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.of: dict[fx.Node, Shape] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.of[node] = tuple(value.shape)
        return value
