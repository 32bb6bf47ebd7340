"""Counters of forward and backward passes through a model, in total and per example."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

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

    def forward(self, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        """Count a call of the model, and its backward pass when it happens."""
        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(self.backward)

    def backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


PassesT = TypeVar("PassesT", bound=Passes)


@contextmanager
def count_passes(model: nn.Module, passes: PassesT) -> Iterator[PassesT]:
    """Add to `passes`, inside the block, every call of the model and every gradient taken through its output."""
    handle = model.register_forward_hook(lambda _, inputs, output: passes.forward(inputs, output))
    try:
        yield passes
    finally:
        handle.remove()


class AttackPasses(Passes):
    """The passes of an attack on one batch of images x (B,C,H,W) with labels y (B,), per example.

    passes_until_broken (B,) int64: the forward and backward passes of an example up to the first point of the threat
    model that was misclassified; 0 if there was none. Calls on part of the batch without `on_rows` (the code of other
    libraries) are shared equally among all examples.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        super().__init__()
        self.x, self.y, self.threat = x, y, threat
        self.passes_until_broken = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        self._per_example = torch.zeros(len(y), dtype=torch.float64, device=y.device)

    def forward(self, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        super().forward(inputs, logits)
        rows = self._rows(len(logits))
        self._add(rows, len(logits))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._add(rows, len(gradient)))
        if rows is not None:
            misclassified = (logits.detach().argmax(dim=1) != self.y[rows]) & (self.passes_until_broken[rows] == 0)
            if misclassified.any():
                candidates = rows[misclassified]
                points = inputs[0].detach()[misclassified]
                broken = candidates[self.threat.of(candidates).contains(points, self.x[candidates])]
                self.passes_until_broken[broken] = self.total()[broken]

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
