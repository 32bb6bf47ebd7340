"""Subnetworks of networks with fixed weights: masks by score."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.training.architecture import linear_layers

Rank = Literal["score", "magnitude"]
Start = float | Literal["fan-in"]  # of scores: U[-a, a], or a = sqrt(1 / l) for layers of l inputs


class TopMask(torch.autograd.Function):
    """1 at the `keep` highest ranks, else 0. The gradient is the identity (straight-through)."""

    @staticmethod
    def forward(ctx: Any, ranks: Tensor, keep: int) -> Tensor:
        highest = ranks.flatten().topk(keep, sorted=False).indices
        return torch.zeros_like(ranks).flatten().index_fill_(0, highest, 1.0).reshape(ranks.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class TopScoreMask(nn.Module):
    """A parametrization: a layer's fixed weight times the mask of its scores, or of their absolute values.

    If ranks are magnitudes, the gradient has the score's sign, like that of |s|: weights to keep move away from 0.
    """

    def __init__(self, scores: Tensor, keep: int, rank: Rank) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.keep, self.rank = keep, rank

    def forward(self, weight: Tensor) -> Tensor:
        mask: Tensor = TopMask.apply(self.scores.abs() if self.rank == "magnitude" else self.scores, self.keep)
        return weight * mask


def fan_in(weight: Tensor) -> int:
    """The number of inputs of each unit or output pixel: l of the layer before, times the kernel's pixels."""
    return weight[0].numel()


def mask_layers(model: nn.Module, budgets: Sequence[int], start: Start, rank: Rank) -> None:
    """Fix the weight of each linear and convolutional layer, and multiply it by a mask of trainable scores U[-a, a]."""
    for layer, keep in zip(linear_layers(model), budgets, strict=True):
        layer.weight.requires_grad_(False)
        score_range = fan_in(layer.weight) ** -0.5 if start == "fan-in" else start
        scores = torch.empty_like(layer.weight).uniform_(-score_range, score_range)
        parametrize.register_parametrization(layer, "weight", TopScoreMask(scores, keep, rank))


def masks(model: nn.Module) -> list[TopScoreMask]:
    return [module for module in model.modules() if isinstance(module, TopScoreMask)]
