"""Counters of forward and backward passes through a model, in total and per example."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from bench.core.threat import ThreatModel

WorkOf = Callable[[Any, Tensor], int]  # (inputs, output) of a call of a layer -> its multiply-adds
ROUNDING = 1e-6  # of a pass, in a sum of shares
_ROWS: ContextVar[Tensor | None] = ContextVar("rows", default=None)


@contextmanager
def on_rows(rows: Tensor) -> Iterator[None]:
    """Declare that calls inside the block are on some rows of the batch: `rows` (b,) int64, one per input of a call.

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
    """Numbers of forward and backward passes. One pass is one example through the whole model.

    - A call of the model is one pass for each example, whatever the model does inside.
    - A call of a part of the model, outside of a call of the model itself, is a share of a pass: the multiply-adds of
      its linear and convolutional layers, divided by those of one example through the whole model. So a part that
      contains all these layers counts as the model does, the parts of a chain add up to one pass, and a batch in
      chunks counts as one batch. `torch.func.functional_call` calls the module with other weights, and counts as well.
    - The gradient of the output of a call is a backward pass, or the same share of one.

    Code that uses the weights without calling a layer (bounds, for example) makes no passes. The work of the whole
    model is measured in a call in train mode if there was one, else in eval mode. Shares are summed exactly and rounded
    at the end of `count_passes`; the rounding error is kept for the next count.
    """

    forwards: int = 0
    backwards: int = 0
    forward_work: int = field(default=0, compare=False)  # multiply-adds in parts of the model that are not yet counted
    backward_work: int = field(default=0, compare=False)
    whole: dict[bool, int] = field(default_factory=dict, compare=False)  # multiply-adds of a pass, by model.training

    @property
    def work_of_a_pass(self) -> int:
        """The multiply-adds of one example through the whole model; 0 if it was not called yet."""
        return self.whole.get(True) or self.whole.get(False, 0)

    def forward(self, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        """Count a call of the model, and its backward pass when it happens."""
        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(self.backward)

    def backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def forward_part(self, output: Tensor, work: int) -> None:
        """Count a call of one layer outside of a call of the model, and its backward pass when it happens."""
        self.forward_work += work
        if output.requires_grad:
            output.register_hook(lambda _: self.backward_part(work))

    def backward_part(self, work: int) -> None:
        self.backward_work += work

    def convert_work(self) -> None:
        """Turn the work in parts of the model into passes, if the work of a pass is known."""
        if work := self.work_of_a_pass:
            forwards, backwards = ((2 * each + work) // (2 * work) for each in (self.forward_work, self.backward_work))
            self.forwards, self.forward_work = self.forwards + forwards, self.forward_work - forwards * work
            self.backwards, self.backward_work = self.backwards + backwards, self.backward_work - backwards * work


PassesT = TypeVar("PassesT", bound=Passes)


@contextmanager
def count_passes(model: nn.Module, passes: PassesT) -> Iterator[PassesT]:
    """Add to `passes`, inside the block, every call of the model or of a part of it, and every gradient through it.

    A copy of the model that is made inside the block counts as the model. Calls of parts of a compiled or scripted
    model are not seen, nor any calls of a scripted model outside of a Classifier.
    """
    if isinstance(model, torch.jit.ScriptModule):  # takes no hooks
        yield passes
        return
    running, work = False, 0  # whether the model itself runs, and the work of its layers in this call
    # hooks are functions, not methods: a copy of the model shares functions, and would have a copy of the object

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal running, work
        running, work = True, 0

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal running
        running = False
        if isinstance(output, Tensor):
            passes.forward(inputs, output)
            if module.training not in passes.whole and len(output):
                passes.whole[module.training] = work // len(output)

    def count_layer(work_of: WorkOf) -> Callable[[nn.Module, Any, Any], None]:
        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal work
            if torch.compiler.is_compiling():  # the call of the whole is counted; counts would be compiled into it
                return
            if not isinstance(output, Tensor):
                return
            if not running:
                passes.forward_part(output, work_of(inputs, output))
            elif model.training not in passes.whole:
                work += work_of(inputs, output)

        return count

    handles = [model.register_forward_pre_hook(enter)]
    handles += [layer.register_forward_hook(count_layer(work_of)) for layer, work_of in _layers(model)]
    handles.append(model.register_forward_hook(leave, always_call=True))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
        passes.convert_work()


def _layers(model: nn.Module) -> list[tuple[nn.Module, WorkOf]]:
    """The layers with matrices of weights, once each, with the multiply-adds of a call."""
    found: dict[nn.Module, WorkOf] = {}
    rest = [model]
    while rest:
        module = rest.pop()
        if module in found or _is_compiled(module) or isinstance(module, ParametrizationList):
            continue
        rest += module.children()
        if isinstance(module, nn.Linear):
            found[module] = _dense(module.in_features)
        elif isinstance(module, _ConvNd):
            taps, transposed = math.prod(module.kernel_size), module.transposed
            fan = (module.out_channels if transposed else module.in_channels) * taps // module.groups
            found[module] = _transposed(fan) if transposed else _dense(fan)
        elif weights := sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1):
            found[module] = _once(weights)  # a layer of another kind: each weight is used once per example
    return list(found.items())


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is compiled or scripted, so calls of its parts are not seen. (Importing torch._dynamo is slow.)"""
    compiled = type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
    return compiled or isinstance(module, torch.jit.ScriptModule)


def _dense(fan_in: int) -> WorkOf:
    return lambda _, output: output.numel() * fan_in


def _transposed(fan_out: int) -> WorkOf:
    return lambda inputs, _: int(inputs[0].numel()) * fan_out


def _once(weights: int) -> WorkOf:
    return lambda _, output: len(output) * weights


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
        self._work_per_example = torch.zeros(len(y), dtype=torch.float64, device=y.device)

    def forward(self, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        super().forward(inputs, logits)
        rows = self._rows(len(logits))
        self._add(self._per_example, rows, len(logits))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._add(self._per_example, rows, len(gradient)))
        if rows is not None:
            misclassified = (logits.detach().argmax(dim=1) != self.y[rows]) & (self.passes_until_broken[rows] == 0)
            if misclassified.any():
                candidates = rows[misclassified]
                points = inputs[0].detach()[misclassified]
                broken = candidates[self.threat.of(candidates).contains(points, self.x[candidates])]
                self.passes_until_broken[broken] = self.total()[broken]

    def forward_part(self, output: Tensor, work: int) -> None:
        super().forward_part(output, work)
        rows = self._rows(len(output))
        self._add(self._work_per_example, rows, work)
        if output.requires_grad:
            output.register_hook(lambda _: self._add(self._work_per_example, rows, work))

    def total(self) -> Tensor:
        """The passes of each example so far, (B,) int64, rounded up."""
        shares = self._work_per_example / self.work_of_a_pass if self.work_of_a_pass else 0.0
        return (self._per_example + shares - ROUNDING).ceil().long()

    def _rows(self, inputs: int) -> Tensor | None:
        rows = _ROWS.get()
        if rows is None and inputs == len(self.y):
            return torch.arange(inputs, device=self.y.device)
        return rows if rows is not None and len(rows) == inputs else None

    def _add(self, counts: Tensor, rows: Tensor | None, amount: int) -> None:
        """Add an amount to the counts (B,) of some examples, in equal parts."""
        if rows is None:
            counts += amount / len(self.y)
        else:
            share = torch.full((len(rows),), amount / len(rows), dtype=torch.float64, device=rows.device)
            counts.index_add_(0, rows, share)
