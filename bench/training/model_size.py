"""The size of a network: weights, bits, bytes, and the FLOPs of Table 5.1 of the thesis."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.devices import call_with_hooks
from bench.core.records import Size
from bench.training.architecture import Layer, linear_layers
from bench.training.checkpoints import BuildSpec
from bench.training.packed import packed_bytes, weights_of

Phase = Literal["training", "evaluation", "backward"]


class Work(NamedTuple):
    """One layer's call on one image: products of a kept weight with a value, values of its output, and weights."""

    products: int
    outputs: int
    weights: int
    is_convolution: bool
    binary: bool


def work_of(model: nn.Module, shape: tuple[int, ...]) -> list[Work]:
    """The work of each linear and convolutional layer for one image of `shape` (C,H,W), counted in a forward pass.

    A kept weight of a convolution makes a product at each pixel of the output. A layer is binary if its kept weights
    have one absolute value.
    """
    found: list[Work] = []

    def count(layer: Layer, inputs: object, output: Tensor) -> None:
        weight, pixels = layer.weight.detach(), output[0].numel() // len(layer.weight)
        values = weight[weight != 0].abs()
        same = bool(values.numel() == 0 or (values == values[0]).all())
        kept = int((weight != 0).sum())
        found.append(Work(kept * pixels, output[0].numel(), weight.numel(), isinstance(layer, nn.Conv2d), same))

    call_with_hooks(model, linear_layers(model), shape, count)
    return found


def flops(work: list[Work], phase: Phase, binary: bool | None = None) -> int:
    """FLOPs of one image by Table 5.1, summed over the layers; binary: count each as if it were, or were not.

    The table is for convolutions with batch norm and ReLU. Linear layers count only the terms of their weights.
    """
    total = 0
    for each in work:
        is_binary = each.binary if binary is None else binary
        factors = {"training": (2, 1, 11), "evaluation": (2, 1, 4), "backward": (4, 3, 4)}[phase]
        total += each.products * factors[is_binary]
        if each.is_convolution:
            total += each.outputs * factors[2]
        if phase == "backward" and not is_binary:
            total += each.weights
    return total


def size_of(model: nn.Module, spec: BuildSpec) -> Size | None:
    """The size for a run's record; None for networks without linear layers or not in float32: they are not packed."""
    tensors = [*model.parameters(), *model.buffers()]
    if not linear_layers(model) or any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors):
        return None
    kept, bits = 0, 0
    for weight in weights_of(model):
        values = weight[weight != 0]
        kept += values.size
        bits += values.size * (1 if len(np.unique(values)) <= 2 else 32)
    weights = sum(layer.weight.numel() for layer in linear_layers(model))
    work = work_of(model, spec.shape)
    return Size(weights, kept, bits, len(packed_bytes(model, spec)), flops(work, "evaluation"))
