"""Counting how often examples go through a model, forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Passes:
    """One pass is one example through the whole model."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def count_passes(model: nn.Module, passes: Passes | None = None) -> Iterator[Passes]:
    """Counts, inside the block, every call of the model and every gradient taken through its output."""
    passes = passes if passes is not None else Passes()

    def after_forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        passes.forwards += len(output)
        if output.requires_grad:
            output.register_hook(after_backward)

    def after_backward(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    handle = model.register_forward_hook(after_forward)
    try:
        yield passes
    finally:
        handle.remove()
