"""Data parallelism within one batch: each process runs the network on its share of the examples.

Every process computes images, noise, losses, banks and updates for the whole batch, from the same random numbers. Only
calls by `in_shares` differ: a process computes some rows, and then gets those of the others. A tensor is therefore
*whole*, the same in every process, or a *share*. The functions below convert one to the other, and the derivative of
each is another one of them. So gradients of any order equal those of one process, up to the rounding of sums: those of
images, of weights, and of losses over the whole batch.

torch's DistributedDataParallel averages the gradients of losses of shares instead. With it, every defense would have to
handle shares in its noise, sub-samples, batch statistics of losses, and passes for images' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed.nn  # imported after a group is joined, its default arguments would keep the group alive
from torch import Tensor, distributed, nn

from bench.core.errors import CheckError

Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, Tensor])
ValueT = TypeVar("ValueT")
PATIENCE = timedelta(days=7)  # the other processes wait while the first one evaluates

_joined = False
_AT: ContextVar[Literal["whole", "divided", "share"]] = ContextVar("at", default="whole")


@contextmanager
def joined(backend: str, **place: Any) -> Iterator[None]:
    """Join a group of processes inside the block: torchrun's, or that of init_method, rank and world_size."""
    global _joined
    distributed.init_process_group(backend, timeout=PATIENCE, **place)
    _joined = True
    try:
        yield
        distributed.destroy_process_group()  # not after an error: the others may wait for this process until it ends
    finally:
        _joined = False


def count() -> int:
    """The number of processes that work on one batch; 1 outside of `joined`."""
    return distributed.get_world_size() if _joined else 1


def is_first() -> bool:
    """Whether this process is the one that reads and writes files."""
    return not _joined or distributed.get_rank() == 0


def from_first(value: Callable[[], ValueT]) -> ValueT:
    """The value that the first process computes."""
    if count() == 1:
        return value()
    values: list[Any] = [value() if is_first() else None]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def check_agreement(tensors: Iterable[Tensor]) -> None:
    """CheckError if whole tensors are not the same, bit for bit, in every process."""
    if count() == 1:
        return
    hashes = [torch.hash_tensor(tensor.detach().double()) for tensor in tensors if tensor.numel()]
    own = torch.stack(hashes).view(torch.int64)
    first = own.clone()
    distributed.broadcast(first, src=0)
    differs = (own != first).any().long()
    distributed.all_reduce(differs)
    if differs:
        raise CheckError(
            "the processes of the training no longer have the same weights: an operation of the defense or the model "
            "gives other results in each of them; train in one process"
        )


@contextmanager
def divided() -> Iterator[None]:
    """Inside the block, calls by `in_shares` are divided among the processes."""
    token = _AT.set("divided" if count() > 1 else "whole")
    try:
        yield
    finally:
        _AT.reset(token)


@contextmanager
def undivided() -> Iterator[None]:
    """Inside the block, every process computes all rows of what it calls."""
    token = _AT.set("whole")
    try:
        yield
    finally:
        _AT.reset(token)


def in_a_share() -> bool:
    """Whether the running code is a function that `in_shares` has called with a share."""
    return _AT.get() == "share"


def in_shares(model: nn.Module, function: Callable[..., Outputs], *tensors: Tensor) -> Outputs:
    """Compute function(*tensors), whose rows are examples that are independent of each other except in batch norm.

    The function uses the weights of the model, draws no random numbers, and returns one tensor (B,...) or two. Outside
    of `divided`, and in nested calls, it is simply called.
    """
    if _AT.get() != "divided":
        return function(*tensors)
    rows = len(tensors[0])
    shares: list[Tensor] = [
        Scattered.apply(tensor) if tensor.is_floating_point() else own_rows(tensor) for tensor in tensors
    ]
    weights = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    copies: Sequence[Tensor] = Copied.apply(*weights.values()) if torch.is_grad_enabled() else tuple(weights.values())
    token = _AT.set("share")
    try:
        outputs: Any = torch.func.functional_call(
            _Using(model, function), dict(zip(weights, copies, strict=True)), tuple(shares)
        )
    finally:
        _AT.reset(token)
    single = isinstance(outputs, Tensor)
    outputs = (outputs,) if single else outputs
    # every process has the same graph of shares and copies, whatever the function did with its rows
    used = [tensor for tensor in [*copies, *shares] if tensor.is_floating_point()]
    outputs = Joined.apply(len(outputs), *outputs, *used)
    whole = tuple(Gathered.apply(output, rows) for output in outputs)
    return whole[0] if single else whole  # type: ignore[return-value]


class _Using(nn.Module):
    """Wraps a function that uses a model's weights as a module, so that functional_call can replace the weights."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def own_rows(whole: Tensor) -> Tensor:
    """The rows of a whole tensor (B,...) that are this process's share: B / count, one more in the first processes."""
    return whole.tensor_split(count())[distributed.get_rank()]


def all_rows(share: Tensor, rows: int) -> Tensor:
    """Gather the whole tensor of `rows` rows from the shares of all processes."""
    sizes = [len(part) for part in torch.empty(rows, 0).tensor_split(count())]
    padded = share.new_zeros((max(sizes), *share.shape[1:]))
    padded[: len(share)] = share
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def rows_to_read(index: Tensor) -> Tensor:
    """The part of the rows `index` that this process reads: its share inside `divided`, else all."""
    return own_rows(index) if _AT.get() == "divided" else index


def all_rows_read(read: Tensor, index: Tensor) -> Tensor:
    """Gather the rows `index` that all processes have read; `read` is this process's part."""
    return all_rows(read, len(index)) if _AT.get() == "divided" else read


class Scattered(torch.autograd.Function):
    """Whole (B,...) -> the rows of this process."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        ctx.rows = len(whole)
        return own_rows(whole).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return Gathered.apply(gradients[0], ctx.rows)


class Gathered(torch.autograd.Function):
    """The rows of this process -> whole (B,...)."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, rows: int) -> Tensor:
        return all_rows(share, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return Scattered.apply(gradients[0]), None


class Copied(torch.autograd.Function):
    """Whole tensors -> this process's copies, each of which has a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, *whole: Tensor) -> Any:
        return tuple(tensor.view_as(tensor) for tensor in whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return Summed.apply(*gradients)


class Summed(torch.autograd.Function):
    """Terms of this process -> whole tensors, the sums over all processes."""

    @staticmethod
    def forward(ctx: Any, *terms: Tensor) -> Any:
        return tuple(_sums(terms))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return Copied.apply(*gradients)


class Joined(torch.autograd.Function):
    """Returns the first `number` tensors, and makes all the others part of their autograd graph."""

    @staticmethod
    def forward(ctx: Any, number: int, *tensors: Tensor) -> Any:
        ctx.others = len(tensors) - number
        return tuple(tensor.view_as(tensor) for tensor in tensors[:number])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *gradients, *[None] * ctx.others


def sum_of_shares(term: Tensor) -> Tensor:
    """Inside a share: the differentiable sum of the terms of all processes."""
    copies: tuple[Tensor] = Copied.apply(*Summed.apply(term))
    return copies[0]


def _sums(terms: Sequence[Tensor]) -> list[Tensor]:
    """Sum each term over all processes, with one message per dtype."""
    sums = list(terms)
    for dtype in {term.dtype for term in terms}:
        places = [place for place, term in enumerate(terms) if term.dtype == dtype]
        flat = torch.cat([terms[place].flatten() for place in places])
        distributed.all_reduce(flat)
        parts = flat.split([terms[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            sums[place] = part.view(terms[place].shape)
    return sums
