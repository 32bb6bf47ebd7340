"""Balls around the initial weights: projections onto them after each step, and distances from the initial weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.core.threat import TINY


@torch.no_grad()
def project_layers(weights: Sequence[Tensor], start: Sequence[Tensor], radius: float) -> None:
    """Project each weight onto |W - W_0|_F <= radius, in place.

    Gao et al. (2019), Eq. 2 (there radius = R / sqrt(m)): the Euclidean projection onto B(R).
    """
    for weight, first in zip(weights, start, strict=True):
        move = weight - first
        weight.copy_(first + move * (radius / move.norm().clamp(min=TINY)).clamp(max=1))


@torch.no_grad()
def project_neurons(weight: Tensor, start: Tensor, radius: float) -> None:
    """Project each row of a weight (m, d) onto |w_s - w_s0| <= radius, in place.

    Wang et al. (2022), appendix A, algorithm 1 (there radius = C0 / sqrt(m)).
    """
    move = weight - start
    weight.copy_(start + move * (radius / move.norm(dim=1, keepdim=True).clamp(min=TINY)).clamp(max=1))


@torch.no_grad()
def farthest_neuron(weight: Tensor, start: Tensor) -> float:
    """The largest |w_s - w_s0| over the rows: the network is lazy while it is at most C0 / sqrt(m)."""
    return float((weight - start).norm(dim=1).max())
