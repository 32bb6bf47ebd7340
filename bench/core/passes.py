"""Counting how often examples go through a model, forwards and backwards, and when each is first seen to fall."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.threat import ThreatModel

_ROWS: ContextVar[Tensor | None] = ContextVar("rows", default=None)


@contextmanager
def on_rows(rows: Tensor) -> Iterator[None]:
    """Inside the block the model sees only some rows of the batch: `rows` (b,) int64, one for each row it is given.

    An attack that leaves out examples, or shows one several times, says so by this; else its passes cannot be told
    apart. Blocks nest: the inner rows count within the outer ones.
    """
    outer = _ROWS.get()
    token = _ROWS.set(rows if outer is None else outer[rows])
    try:
        yield
    finally:
        _ROWS.reset(token)


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


class Watch(Passes):
    """The passes of an attack on one batch, example by example.

    fell (B,) int64: the passes of an example, both ways, up to the first allowed point that the model got wrong; 0
    where none was seen. An attack that shows some examples only and does not say which (on_rows: other people's code
    does not) is counted as if it had shown all of them equally.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        super().__init__()
        self.x, self.y, self.threat = x, y, threat
        self.spent = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        self.fell = torch.zeros(len(y), dtype=torch.int64, device=y.device)

    def forward(self, x: Tensor, logits: Tensor) -> None:
        rows = self._rows(len(logits))
        self.forwards += len(logits)
        self._spend(rows, len(logits))
        if logits.requires_grad:
            logits.register_hook(partial(self.backward, rows))
        if rows is not None:
            wrong = (logits.detach().argmax(dim=1) != self.y[rows]) & (self.fell[rows] == 0)
            if wrong.any():
                hit = rows[wrong]
                inside = self.threat.of(hit).contains(x.detach()[wrong], self.x[hit])
                self.fell[hit[inside]] = self.total()[hit[inside]]

    def backward(self, rows: Tensor | None, gradient: Tensor) -> None:
        self.backwards += len(gradient)
        self._spend(rows, len(gradient))

    def total(self) -> Tensor:
        """The passes of each example so far, (B,) int64, rounded up."""
        return self.spent.ceil().long()

    def _rows(self, shown: int) -> Tensor | None:
        rows = _ROWS.get()
        if rows is None and shown == len(self.y):
            return torch.arange(shown, device=self.y.device)
        return rows if rows is not None and len(rows) == shown else None

    def _spend(self, rows: Tensor | None, shown: int) -> None:
        if rows is None:
            self.spent += shown / len(self.y)
        else:
            self.spent.index_add_(0, rows, torch.ones(shown, dtype=torch.float64, device=rows.device))


@contextmanager
def watch(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Iterator[Watch]:
    """A Watch over an attack on images x (B,C,H,W) with labels y (B,), inside the block."""
    seen = Watch(x, y, threat)
    handle = model.register_forward_hook(lambda _, inputs, output: seen.forward(inputs[0], output))
    try:
        yield seen
    finally:
        handle.remove()
