"""Subnetworks of networks with fixed weights: masks by score, and how many weights each layer keeps."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.core.errors import UserError

Rank = Literal["score", "magnitude"]


class TopMask(torch.autograd.Function):
    """1 at the `keep` highest ranks, else 0. The gradient is the identity (straight-through)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: int, rank: Rank) -> Tensor:
        values = scores.abs() if rank == "magnitude" else scores
        highest = values.flatten().topk(keep, sorted=False).indices
        return torch.zeros_like(scores).flatten().index_fill_(0, highest, 1.0).reshape(scores.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class Masked(nn.Module):
    """A parametrization: a layer's fixed weight times the mask of its scores."""

    def __init__(self, scores: Tensor, keep: int, rank: Rank) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.keep, self.rank = keep, rank

    def forward(self, weight: Tensor) -> Tensor:
        mask: Tensor = TopMask.apply(self.scores, self.keep, self.rank)
        return weight * mask


def linear_layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def mask_layers(model: nn.Module, budgets: Sequence[int], score_range: float, rank: Rank) -> None:
    """Fix the weight of each linear and convolutional layer, and multiply it by a mask of trainable scores U[-a, a]."""
    for layer, keep in zip(linear_layers(model), budgets, strict=True):
        layer.weight.requires_grad_(False)
        scores = torch.empty_like(layer.weight).uniform_(-score_range, score_range)
        parametrize.register_parametrization(layer, "weight", Masked(scores, keep, rank))


def masks(model: nn.Module) -> list[Masked]:
    return [module for module in model.modules() if isinstance(module, Masked)]


def adaptive_budgets(sizes: Sequence[int], keep_share: float, gamma: float) -> list[int]:
    """How many weights to keep of each layer, given the layers' `sizes` (thesis Eq. 5.11, made exact).

    The budgets add up to round(keep_share * sum(sizes)) and are proportional to size^gamma: gamma = 1 keeps the same
    share of each layer, gamma = 0 the same number. No layer keeps more than it has (its excess goes to the larger
    layers) or less than one weight.
    """
    total = round(keep_share * sum(sizes))
    if not len(sizes) <= total <= sum(sizes):
        raise UserError(f"keeping {total} of {sum(sizes)} weights in {len(sizes)} layers is not possible; change r")
    wanted: dict[int, float] = {}
    left = float(total)
    powers = {i: size**gamma for i, size in enumerate(sizes)}
    for i in sorted(powers, key=lambda i: sizes[i]):
        rest = sum(powers[j] for j in powers if j not in wanted)
        wanted[i] = min(float(sizes[i]), left * powers[i] / rest)
        left -= wanted[i]
    budgets = [max(1, math.floor(wanted[i])) for i in range(len(sizes))]
    # correct the rounding, one weight at a time, in the layer whose budget is furthest off
    while sum(budgets) < total:
        budgets[max(wanted, key=lambda i: wanted[i] - budgets[i])] += 1
    while sum(budgets) > total:
        budgets[max((i for i in wanted if budgets[i] > 1), key=lambda i: budgets[i] - wanted[i])] -= 1
    return budgets
