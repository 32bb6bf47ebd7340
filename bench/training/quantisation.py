"""Projections of weights onto a few values: the centres of clusters."""

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 20  # of k-means; one-dimensional clusters settle in fewer


def clustered(weight: Tensor, bits: int) -> Tensor:
    """Each weight that is not 0 replaced by the centre of its cluster; at most 2^bits clusters, zeros stay 0.

    Lloyd's algorithm in one dimension, from the quantiles of the weights.
    """
    values = weight[weight != 0]
    count = min(2**bits, values.unique().numel())
    if count == 0:
        return weight.clone()
    shares = (torch.arange(count, dtype=values.dtype, device=values.device) + 0.5) / count
    centres = quantiles(values, shares)
    for _ in range(ROUNDS):
        nearest = (values[:, None] - centres).abs().argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, values)
        numbers = torch.zeros_like(centres).index_add_(0, nearest, torch.ones_like(values))
        centres = torch.where(numbers > 0, sums / numbers.clamp(min=1), centres)
    nearest = (values[:, None] - centres).abs().argmin(dim=1)
    return weight.clone().masked_scatter_(weight != 0, centres[nearest])


def quantiles(values: Tensor, shares: Sequence[float] | Tensor) -> Tensor:
    """Quantiles of the values at these shares; torch.quantile does not accept large tensors."""
    places = (torch.as_tensor(shares, device=values.device) * (len(values) - 1)).round().long()
    return values.sort().values[places]
