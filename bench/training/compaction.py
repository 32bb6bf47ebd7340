"""Exact removal of empty channels: a smaller network of dense layers with the same predictions."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.training.architecture import Layer

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Identity)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)  # they keep a constant channel constant


class Pair(NamedTuple):
    """Two consecutive layers, and the modules between them, which act on each channel separately."""

    first: Layer
    between: list[nn.Module]
    second: Layer


def compacted(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode without masks, and without channels between two layers that have no effect.

    A channel is removed if no weight of the second layer reads it, or if it is 0 for every image: the first layer has
    no weight for it, and the modules between map its bias to 0. Channels that become empty by this are removed too.
    Channels that are added in a residual network are kept. Each layer keeps at least one channel.
    """
    model = copy.deepcopy(model).eval()
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain(layer))
    found, changed = pairs(model), True
    with torch.no_grad():
        while changed:
            changed = False
            for pair in reversed(found):
                changed |= remove_empty(pair)
    return model


def plain(layer: Layer) -> Layer:
    """Return a layer with this one's effective weight, without parametrizations (whose class a copy would share)."""
    new: Layer
    if isinstance(layer, nn.Conv2d):
        new = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,  # type: ignore[arg-type]
            layer.groups, padding_mode=layer.padding_mode,
        )  # fmt: skip
    else:
        new = nn.Linear(layer.in_features, layer.out_features)
    new.weight = nn.Parameter(layer.weight.detach().clone())
    new.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    return new.eval()


def pairs(model: nn.Module) -> list[Pair]:
    """The pairs of consecutive layers in the model's nn.Sequential modules; only these define an order."""
    found = []
    for chain in chains(model):
        places = [place for place, module in enumerate(chain) if isinstance(module, nn.Linear | nn.Conv2d)]
        for start, end in pairwise(places):
            first, second, between = chain[start], chain[end], chain[start + 1 : end]
            assert isinstance(first, nn.Linear | nn.Conv2d)
            assert isinstance(second, nn.Linear | nn.Conv2d)
            grouped = any(isinstance(layer, nn.Conv2d) and layer.groups != 1 for layer in (first, second))
            if not grouped and all(isinstance(module, NORMS + POINTWISE + POOLS) for module in between):
                found.append(Pair(first, between, second))
    return found


def chains(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield the modules of each nn.Sequential, with nested ones flattened; a module of another kind is one element."""
    inside = {child for module in model.modules() if isinstance(module, nn.Sequential) for child in module}
    for module in model.modules():
        if isinstance(module, nn.Sequential) and module not in inside:
            yield list(flattened_layers(module))


def flattened_layers(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from flattened_layers(child)
    else:
        yield module


def read_channels(pair: Pair) -> Tensor:
    """Which outputs of the first layer the second one reads, (channels,) bool."""
    weight = pair.second.weight
    return (weight.reshape(len(weight), len(pair.first.weight), -1) != 0).any(dim=2).any(dim=0)


def written_channels(pair: Pair) -> Tensor:
    """Which outputs of the first layer have a weight, (channels,) bool."""
    return (pair.first.weight.flatten(1) != 0).any(dim=1)


def remove_empty(pair: Pair) -> bool:
    """Remove the channels without effect; returns whether there were any."""
    first, second = pair.first, pair.second
    keep = read_channels(pair) & (written_channels(pair) | (constants(pair) != 0))
    if not keep.any():
        keep[0] = True
    if keep.all():
        return False
    channels = len(keep)
    weight = second.weight.reshape(len(second.weight), channels, -1)[:, keep]
    second.weight = nn.Parameter(weight.reshape(len(weight), -1, *second.weight.shape[2:]))
    first.weight = nn.Parameter(first.weight[keep])
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias[keep])
    for norm in (module for module in pair.between if isinstance(module, NORMS)):
        for name in ("weight", "bias"):
            if getattr(norm, name) is not None:
                setattr(norm, name, nn.Parameter(getattr(norm, name)[keep]))
        for name in ("running_mean", "running_var"):
            if getattr(norm, name) is not None:
                setattr(norm, name, getattr(norm, name)[keep])
        norm.num_features = int(keep.sum())
    set_sizes(first)
    set_sizes(second)
    return True


def constants(pair: Pair) -> Tensor:
    """The constant value of a channel without weights at the input of the second layer, (channels,)."""
    first, channels = pair.first, len(pair.first.weight)
    value = torch.zeros(channels, device=first.weight.device) if first.bias is None else first.bias.detach()
    for module in pair.between:
        if not isinstance(module, POOLS):
            shape = (1, channels, 1, 1) if isinstance(module, nn.BatchNorm2d) else (1, channels)
            value = module(value.reshape(shape)).flatten()
    return value


def set_sizes(layer: Layer) -> None:
    """Set, in place, a layer's numbers of channels or features to those of its weight, after units were removed."""
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    else:
        layer.out_features, layer.in_features = layer.weight.shape
