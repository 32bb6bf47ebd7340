"""A subnetwork inside a network that is never trained: masks by score, and how many weights each layer keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.core.errors import UserError

Rank = Literal["score", "magnitude"]


class TopMask(torch.autograd.Function):
    """1 at the `keep` highest ranks, else 0; backwards the identity (straight-through)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: int, rank: Rank) -> Tensor:
        height = scores.abs() if rank == "magnitude" else scores
        kept = height.flatten().topk(keep, sorted=False).indices
        return torch.zeros_like(scores).flatten().index_fill_(0, kept, 1.0).reshape(scores.shape)

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
    """Fix each linear and convolutional weight and put a mask of trainable scores U[-a, a] over it."""
    for layer, keep in zip(linear_layers(model), budgets, strict=True):
        layer.weight.requires_grad_(False)
        scores = torch.empty_like(layer.weight).uniform_(-score_range, score_range)
        parametrize.register_parametrization(layer, "weight", Masked(scores, keep, rank))


def masks(model: nn.Module) -> Iterator[Masked]:
    for module in model.modules():
        if isinstance(module, Masked):
            yield module


def adaptive_budgets(sizes: Sequence[int], keep_share: float, gamma: float) -> list[int]:
    """How many of each layer's `sizes` weights to keep: thesis Eq. 5.11, exact to the parameter.

    The m_i add up to round(keep_share * sum of sizes) and are proportional to n_i^gamma, save that no layer keeps more
    than it has: the smallest layers are settled first, and what they cannot take goes to the others. gamma = 1 keeps
    the same share of each layer, gamma = 0 the same number. Every layer keeps at least one weight.
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
    # to whole numbers, one weight at a time: where most is missing, or too much
    while sum(budgets) < total:
        budgets[max(wanted, key=lambda i: wanted[i] - budgets[i])] += 1
    while sum(budgets) > total:
        budgets[max((i for i in wanted if budgets[i] > 1), key=lambda i: budgets[i] - wanted[i])] -= 1
    return budgets
