"""Subnetworks of networks with fixed weights: masks by score."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.training.architecture import StraightThrough, fan_in, linear_layers
from bench.training.pruning import highest

Rank = Literal["score", "magnitude"]
Start = float | Literal["fan-in"]  # of scores: U[-a, a], or a = sqrt(1 / l) for layers of l inputs


class TopScoreMask(nn.Module):
    """A parametrization: a layer's fixed weight times the mask of its highest scores, or highest absolute values.

    These ranks get the mask's gradient (straight-through). If they are absolute values, the gradient of a score has its
    sign, so that weights to keep move away from 0.
    """

    def __init__(self, scores: Tensor, keep: int, rank: Rank) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.keep, self.rank = keep, rank

    def forward(self, weight: Tensor) -> Tensor:
        ranks = self.scores.abs() if self.rank == "magnitude" else self.scores
        (mask,) = highest([ranks.detach()], [self.keep])
        selected: Tensor = StraightThrough.apply(mask, ranks)
        return weight * selected


def mask_layers(model: nn.Module, budgets: Sequence[int], start: Start, rank: Rank) -> None:
    """Fix the weight of each linear and convolutional layer, and multiply it by a mask of trainable scores U[-a, a]."""
    for layer, keep in zip(linear_layers(model), budgets, strict=True):
        layer.weight.requires_grad_(False)
        score_range = fan_in(layer.weight) ** -0.5 if start == "fan-in" else start
        scores = torch.empty_like(layer.weight).uniform_(-score_range, score_range)
        parametrize.register_parametrization(layer, "weight", TopScoreMask(scores, keep, rank))


def masks(model: nn.Module) -> list[TopScoreMask]:
    return [module for module in model.modules() if isinstance(module, TopScoreMask)]
