"""Batch norm with statistics per equal share of a batch, on one process or several."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from bench.core import shares

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def norms_of(model: nn.Module) -> list[Norm]:
    """The batch norms of a model (no other kind of normalisation), in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Norm)]


@contextmanager
def of_shares(model: nn.Module, number: int) -> Iterator[None]:
    """Inside the block, batch norm in train mode uses the statistics of each of `number` shares of the batch.

    If `number` is 1, they are those of the whole batch, synchronised if its examples are on several processes.
    Otherwise each process has its own (not synchronised), or one process uses as many shares (Hoffer et al., 2017,
    ghost batch normalization), with the same result. The running statistics are updated with the mean over the shares.
    """

    def forward(norm: Norm, x: Tensor) -> Tensor:
        if not norm.training or not (shares.in_a_share() or number > 1):
            return type(norm).forward(norm, x)
        return _over_processes(norm, x) if number == 1 else _of_each(norm, x, 1 if shares.in_a_share() else number)

    norms = norms_of(model) if number > 1 or shares.count() > 1 else []
    for norm in norms:
        norm.forward = types.MethodType(forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _over_processes(norm: Norm, x: Tensor) -> Tensor:
    """Normalize with the statistics of all examples; x is this process's share of them."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    sums = shares.sum_of_shares(torch.cat([exact.sum(axes), exact.new_full((1,), x.numel() // x.shape[1])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = exact - mean.view(shape)
    variance = shares.sum_of_shares(centred.square().sum(axes)) / count
    y = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    _update(norm, mean.detach(), variance.detach() * count / (count - 1))
    return y.to(x.dtype)


def _of_each(norm: Norm, x: Tensor, number: int) -> Tensor:
    """Normalize each of `number` parts of x with its own statistics."""
    outputs, means, variances = [], [], []
    for part in x.tensor_split(min(number, len(x))):
        mean, variance = torch.zeros(2, x.shape[1], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        outputs.append(batch_norm(part, mean, variance, norm.weight, norm.bias, True, 1.0, norm.eps))
        means.append(mean)
        variances.append(variance)
    mean, variance = torch.stack(means).mean(dim=0), torch.stack(variances).mean(dim=0)
    if shares.in_a_share():
        both = shares.sum_of_shares(torch.cat([mean, variance])) / shares.count()
        mean, variance = both.chunk(2)
    _update(norm, mean, variance)
    return torch.cat(outputs)


@torch.no_grad()
def _update(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics with the unbiased variance of a batch, as torch does."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
