"""Describes a network for the proof checker (bench/core/network_format.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.core import network_format as described
from bench.core.contracts import mode_of
from bench.core.errors import UserError
from bench.core.network_format import Array, Description, Layer
from certifiers import joins, layers
from certifiers.activations import Rectifier
from certifiers.graph import Node
from certifiers.network import Network

MOST_NUMBERS = 50_000  # constants of one layer that are written out; weights are named


def described_network(model: nn.Module, image: Tensor) -> Description:
    """The layers of a model for images like `image` (1,C,H,W), with weights by their names in its state dict.

    UserError if a layer has no proofs, or has weights that are not in the state dict.
    """
    network, arrays = Network(model, image), Arrays(model)
    with mode_of(model, training=False):
        return Description(described.VERSION, [_described(node, arrays) for node in network.nodes])


class Arrays:
    """Finds where the numbers of a layer are stored, by their values."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        self.norms = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]

    def find(self, value: Tensor) -> Array:
        """UserError if the numbers are neither stored nor derivable from stored ones, and are too many to write out."""
        value = value.detach()
        for name, tensor in self.state.items():
            if tensor.dtype == value.dtype and tensor.shape == value.shape and torch.equal(tensor, value):
                return described.Stored(name=name)
        for array, computed in self._of_norms():
            if computed.shape == value.flatten().shape and torch.equal(computed, value.flatten()):
                return array
        if value.numel() <= MOST_NUMBERS:
            return described.Numbers(shape=list(value.shape), values=value.double().flatten().tolist())
        mask = value != 0
        for name, tensor in self.state.items():
            if tensor.shape == value.shape and torch.equal(torch.where(mask, tensor, 0).to(value), value):
                bits = np.packbits(mask.flatten().cpu().numpy())
                return described.Masked(name=name, mask=bits.tobytes())
        raise UserError(f"it has {value.numel():,} weights that are not in the model's state dict")

    def _of_norms(self) -> Iterator[tuple[Array, Tensor]]:
        """The scale and the shift of each batch norm, computed as in certifiers/image_operations.py."""
        for name, norm in self.norms:
            prefix = f"{name}." if name else ""
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None
            assert var is not None
            factor = (var + norm.eps).rsqrt()
            factor = factor if norm.weight is None else factor * norm.weight.detach()
            shift = -mean * factor
            shift = shift if norm.bias is None else shift + norm.bias.detach()
            weight = None if norm.weight is None else f"{prefix}weight"
            bias = None if norm.bias is None else f"{prefix}bias"
            var_name = f"{prefix}running_var"
            yield described.NormScale(var=var_name, weight=weight, eps=norm.eps), factor
            mean_name = f"{prefix}running_mean"
            yield described.NormShift(mean=mean_name, var=var_name, weight=weight, bias=bias, eps=norm.eps), shift


def _described(node: Node, arrays: Arrays) -> Layer:
    layer, inputs, shape = node.layer, list(node.inputs), list(node.shape)
    try:
        if layer is None:
            return described.Image(inputs=inputs, shape=shape)
        if isinstance(layer, layers.Affine):
            return _affine(layer, inputs, shape, arrays)
        if isinstance(layer, Rectifier):
            leak = arrays.find(torch.as_tensor(layer.leak, dtype=torch.float64))
            return described.Rectifier(inputs=inputs, shape=shape, leak=leak)
        if isinstance(layer, joins.Add):
            return described.Add(inputs=inputs, shape=shape)
        if isinstance(layer, joins.Concatenate):
            return described.Concatenate(inputs=inputs, shape=shape)
        if isinstance(layer, joins.Maximum):
            return described.Maximum(inputs=inputs, shape=shape)
    except UserError as error:
        raise UserError(f"{node.name}: {error}") from None
    raise UserError(f"{node.name}: proofs are for networks with piecewise linear activations")


def _affine(layer: layers.Affine, inputs: list[int], shape: list[int], arrays: Arrays) -> Layer:
    if isinstance(layer, layers.Reshape):
        return described.Reshape(inputs=inputs, shape=shape)
    weight = arrays.find(layer.weight)
    bias = None if layer.bias is None else arrays.find(layer.bias)
    if isinstance(layer, layers.Linear):
        return described.Linear(inputs=inputs, shape=shape, weight=weight, bias=bias)
    if isinstance(layer, layers.Scale):
        assert bias is not None
        return described.Scale(inputs=inputs, shape=shape, weight=weight, bias=bias)
    assert isinstance(layer, layers.Conv | layers.TransposedConv)
    kind = described.Conv if isinstance(layer, layers.Conv) else described.TransposedConv
    kernel = layer.kernel
    return kind(
        inputs=inputs, shape=shape, weight=weight, bias=bias, stride=kernel.stride, padding=kernel.padding,
        dilation=kernel.dilation, groups=kernel.groups,
    )  # fmt: skip
