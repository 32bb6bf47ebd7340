"""`bench run` on several processes started by torchrun: they train together, and the first does everything else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.core import shares
from bench.core.devices import choose_device


@contextmanager
def of_torchrun(device: str) -> Iterator[None]:
    """Join the processes of torchrun inside the block; does nothing without torchrun. device: of `--device`."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    backend = "gloo"
    if choose_device(device).type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl"
    with shares.joined(backend):
        yield


def announce(seed: int | None) -> None:
    """Tell the other processes that this first one now trains with a seed; None: nothing is left to do."""
    shares.from_first(lambda: seed)


def announced() -> int | None:
    """Wait for the next announcement of the first process."""
    return shares.from_first(lambda: None)
