"""Pruning of trained weights: masks that a defense sets, and the settings of such methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.core.config import TrainingConfig
from bench.training.architecture import Layer, StraightThrough, latent, linear_layers, parametrizations_of
from bench.training.budgets import adaptive_budgets

Allocation = Literal["layer", "global"]  # a budget for each layer, or one for all


@dataclass(frozen=True, kw_only=True)
class PruningConfig(TrainingConfig):
    """The settings of a training that prunes weights and continues with the remaining ones."""

    r: float = 0.99  # share of the weights of linear and convolutional layers that are pruned

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            r=(0 < self.r < 1, "in (0, 1)"),
            ema=(self.ema == 0, "0, because an average of masks is no mask"),
            swa=(self.swa == 0, "0, because an average of masks is no mask"),
        )


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(PruningConfig):
    """The settings of a training that keeps the largest weights, or those of the highest scores, until its end."""

    gamma: float = 1.0  # for allocation=layer: 1 keeps the same share of each layer, 0 the same number
    allocation: Allocation = "layer"  # global: the highest scores of all layers together

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            gamma=(0 <= self.gamma <= 1, "in [0, 1]"),
            select=(self.select == "last", "last, because earlier epochs are not pruned"),
        )

    def budget(self, model: nn.Module) -> int | list[int]:
        """The number of weights that are kept, per layer or in total; UserError if r does not allow any."""
        layers = adaptive_budgets(weight_counts(model), 1 - self.r, self.gamma)
        return layers if self.allocation == "layer" else sum(layers)


class WeightMask(nn.Module):
    """A parametrization: a weight times a mask of 0 and 1, which is a buffer. Pruned weights get no gradient."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class ScoredMask(WeightMask):
    """A mask with scores whose absolute values get the mask's gradient (straight-through) where they are trained."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.scores = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        mask: Tensor = StraightThrough.apply(self.mask, self.scores.abs())
        return weight * mask


class SignedMask(WeightMask):
    """A mask with a fixed sign of each connection: the trained weight is its absolute value, and positive."""

    sign: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.register_buffer("sign", torch.where(weight.detach() >= 0, 1.0, -1.0))

    def forward(self, weight: Tensor) -> Tensor:
        return self.sign * weight * self.mask


def register_masks(model: nn.Module, kind: type[WeightMask]) -> None:
    """Give each linear and convolutional layer a mask of this kind, which keeps every weight."""
    for layer in linear_layers(model):
        parametrize.register_parametrization(layer, "weight", kind(layer.weight))


def weight_mask(layer: Layer) -> WeightMask:
    """The mask of a layer: the last of the parametrizations of its weight."""
    mask = parametrizations_of(layer)[-1]
    assert isinstance(mask, WeightMask)
    return mask


def weight_counts(model: nn.Module) -> list[int]:
    """The number of weights of each linear and convolutional layer."""
    return [layer.weight.numel() for layer in linear_layers(model)]


def highest(values: Sequence[Tensor], keep: int | Sequence[int]) -> list[Tensor]:
    """Masks (float, in the values' shapes) of the highest values: `keep` of all together, or keep[i] of values[i]."""
    if isinstance(keep, int):
        (mask,) = highest([torch.cat([v.flatten() for v in values])], [keep])
        parts = mask.split([v.numel() for v in values])
        return [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]
    masks = []
    for v, number in zip(values, keep, strict=True):
        chosen = v.flatten().topk(number, sorted=False).indices
        masks.append(torch.zeros_like(v).flatten().index_fill_(0, chosen, 1.0).reshape(v.shape))
    return masks


@torch.no_grad()
def set_masks(layers: Sequence[Layer], masks: Sequence[Tensor]) -> None:
    for layer, mask in zip(layers, masks, strict=True):
        weight_mask(layer).mask.copy_(mask)


@torch.no_grad()
def clear_pruned(layers: Sequence[Layer]) -> None:
    """Set pruned weights to 0; they start from 0 if they are kept again."""
    for layer in layers:
        latent(layer).mul_(weight_mask(layer).mask)
