"""Counters of forward and backward passes through a model, in total and per example."""

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
    """Inside the block the model is called on some rows of the batch: `rows` (b,) int64, one per input of a call.

    An attack that leaves out examples or repeats them must declare it, so that its passes are counted per example.
    In nested blocks the inner rows index the outer ones.
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
    """Count, inside the block, every call of the model and every gradient taken through its output."""
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


class AttackPasses(Passes):
    """The passes of an attack on one batch, per example.

    passes_until_broken (B,) int64: the forward and backward passes of an example up to the first point of the threat
    model that was misclassified; 0 if there was none. Calls on part of the batch without `on_rows` (the code of other
    libraries) are shared equally among all examples.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        super().__init__()
        self.x, self.y, self.threat = x, y, threat
        self.passes_until_broken = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        self._per_example = torch.zeros(len(y), dtype=torch.float64, device=y.device)

    def forward(self, x: Tensor, logits: Tensor) -> None:
        rows = self._rows(len(logits))
        self.forwards += len(logits)
        self._add(rows, len(logits))
        if logits.requires_grad:
            logits.register_hook(partial(self.backward, rows))
        if rows is not None:
            misclassified = (logits.detach().argmax(dim=1) != self.y[rows]) & (self.passes_until_broken[rows] == 0)
            if misclassified.any():
                candidates = rows[misclassified]
                allowed = self.threat.of(candidates).contains(x.detach()[misclassified], self.x[candidates])
                broken = candidates[allowed]
                self.passes_until_broken[broken] = self.total()[broken]

    def backward(self, rows: Tensor | None, gradient: Tensor) -> None:
        self.backwards += len(gradient)
        self._add(rows, len(gradient))

    def total(self) -> Tensor:
        """The passes of each example so far, (B,) int64, rounded up."""
        return self._per_example.ceil().long()

    def _rows(self, inputs: int) -> Tensor | None:
        rows = _ROWS.get()
        if rows is None and inputs == len(self.y):
            return torch.arange(inputs, device=self.y.device)
        return rows if rows is not None and len(rows) == inputs else None

    def _add(self, rows: Tensor | None, inputs: int) -> None:
        if rows is None:
            self._per_example += inputs / len(self.y)
        else:
            self._per_example.index_add_(0, rows, torch.ones(inputs, dtype=torch.float64, device=rows.device))


@contextmanager
def count_attack_passes(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Iterator[AttackPasses]:
    """AttackPasses of an attack on images x (B,C,H,W) with labels y (B,), inside the block."""
    passes = AttackPasses(x, y, threat)
    handle = model.register_forward_hook(lambda _, inputs, output: passes.forward(inputs[0], output))
    try:
        yield passes
    finally:
        handle.remove()
