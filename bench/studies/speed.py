"""`bench study speed`: the cost of a training step of each defense, by its parts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bench.core import registry
from bench.core.contracts import Batch
from bench.core.devices import multiply_adds
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.spec_text import split_options
from bench.datasets.split import Split
from bench.runs.plan import Plan
from bench.studies.study import ModelStudy
from bench.training.loop import Loop
from leaderboard.render import render

HEADERS = [
    "defense", "ms a step", "of standard", "work of standard", "passes of standard", "attack %", "update %", "data %",
    "images/s", "utilisation %",
]  # fmt: skip
BASE = "standard"


@registry.study("speed")
@dataclass(frozen=True, kw_only=True)
class SpeedStudy(ModelStudy):
    """Milliseconds of a training step of each defense, beside its passes, and how they divide.

    A pass is a forward or a backward pass of one example. work: a forward pass counts one unit, a backward pass to the
    images one, and the backward pass of an update two, in proportion to their multiply-adds. The ratios compare one
    example in one step with `standard`, so a defense whose time is proportional to its work has twice the same number.
    update: the loss, its gradient and the optimizer; data: making the batches; attack: the rest of a step. A defense
    that computes its loss before `trainer.update` has the forward pass of the update under attack. Defenses that cannot
    be trained without further settings are listed below. On a CPU, times are CPU times of this process, so that other
    programs hardly change them.

    images/s: training images per second, each with all its passes. utilisation: the floating-point operations of the
    work per second (2 for each multiply-add of a convolution or linear layer), as a share of the rate of a large matrix
    product in the precision of the training, which is timed here (model FLOP utilisation; bounds and everything else
    count only as time).
    """

    suite: str = "digits"  # its data, model and settings
    defenses: tuple[str, ...] = ()  # names, separated by commas; none: all
    epochs: int = 2  # timed epochs, after one that is not timed
    settings: tuple[str, ...] = ()  # KEY=VALUE of all trainings, separated by commas, as compiled=true

    def run(self) -> str:
        if self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}; it must be at least 1")
        settings = split_options(self.settings, "settings")
        names = list(dict.fromkeys([BASE, *(self.defenses or registry.defense.names())]))
        costs: dict[str, Cost] = {}
        left_out: list[str] = []
        with Progress("speed", len(names), "defense") as progress:
            for name in names:
                if name not in registry.defense:
                    registry.defense.get(name)
                try:
                    plan = self.plan(
                        defense=name, suite=self.suite,
                        overrides=settings | {"epochs": str(self.epochs + 1), "probe_every": "0", "select": "last"},
                    )  # fmt: skip
                    costs[name] = cost_of(plan, self.epochs)
                except UserError as error:
                    left_out.append(f"{name}: {error}")
                progress.advance(1, name)
        if BASE not in costs:
            raise UserError(f"suite '{self.suite}': {left_out[0]}")
        base = costs[BASE]
        rows = [
            [
                name, f"{1000 * cost.seconds / cost.steps:.2f}", f"{cost.per_example / base.per_example:.2f}",
                f"{cost.work / base.work:.2f}", f"{cost.passes / base.passes:.2f}",
                *(f"{100 * part / cost.seconds:.0f}" for part in cost.parts),
                f"{1 / cost.per_example:,.0f}", f"{100 * cost.utilisation:.1f}",
            ]
            for name, cost in costs.items()
        ]  # fmt: skip
        text = render(HEADERS, rows, align="l" + "r" * (len(HEADERS) - 1))
        peaks = {f"{cost.precision}: {cost.peak / 1e9:,.0f} GFLOP/s in a matrix product" for cost in costs.values()}
        return "\n\n".join([f"suite {self.suite}, {self.epochs} epochs", text, *sorted(peaks), *left_out])


@dataclass(frozen=True)
class Cost:
    """The cost of some epochs. passes, work: per example and step; parts: seconds of attack, update, data."""

    seconds: float
    steps: int
    examples: int  # in all steps
    passes: float
    work: float
    parts: tuple[float, float, float]
    flops_of_pass: int  # floating-point operations of a forward pass of one example
    precision: str
    peak: float  # floating-point operations a second of a matrix product in this precision

    @property
    def per_example(self) -> float:
        return self.seconds / self.examples

    @property
    def utilisation(self) -> float:
        return self.flops_of_pass * self.work / self.per_example / self.peak


def cost_of(plan: Plan, epochs: int) -> Cost:
    """Train for one epoch and then for `epochs` more, and return the cost of the latter."""
    assert plan.defense is not None
    split = Split.training(plan.arrays, plan.defense.config, plan.device)
    loop = TimedLoop(plan.new_model(0), plan.defense, split, plan.threat, seed=0)
    loop.run_epoch()
    loop.clear()
    for _ in range(epochs):
        loop.run_epoch()
    made = loop.passes.forwards + loop.passes.backwards - loop.passes_before
    work = made + loop.backwards_of_updates
    parts = (loop.whole - loop.update_seconds - loop.data_seconds, loop.update_seconds, loop.data_seconds)
    seen = loop.examples_seen
    flops = 2 * multiply_adds(plan.new_model(0), plan.arrays.shape)
    precision = loop.execution.computation.precision
    return Cost(
        loop.whole, epochs * loop.steps_per_epoch, seen, made / seen, work / seen, parts, flops, precision,
        product_rate(plan.device.type, precision, plan.threads),
    )  # fmt: skip


@cache
def product_rate(device: str, precision: str, threads: int) -> float:
    """Floating-point operations per second of products of large matrices, the fastest of several."""
    side = 8192 if device == "cuda" else 1024
    matrix = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    seconds = []
    for _ in range(5):
        start = now(torch.device(device))
        torch.mm(matrix, matrix)
        seconds.append(now(torch.device(device)) - start)
    return float(2 * side**3 / min(seconds))


def now(device: torch.device) -> float:
    """The time in seconds, after the device has finished all work; on a CPU, the CPU time of this process."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class TimedLoop(Loop):
    """A training loop that adds up the time of its parts."""

    update_seconds = data_seconds = whole = 0.0
    examples_seen = passes_before = backwards_of_updates = 0
    _depth = 0  # of nested calls that are timed as update

    def clear(self) -> None:
        """Reset the times."""
        self.update_seconds = self.data_seconds = self.whole = 0.0
        self.examples_seen, self.passes_before = 0, self.passes.forwards + self.passes.backwards
        self.backwards_of_updates = 0

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Count the time of the block as part of an update."""
        start, backwards, self._depth = now(self.device), self.passes.backwards, self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.update_seconds += now(self.device) - start
                self.backwards_of_updates += self.passes.backwards - backwards

    def run_epoch(self, report: Callable[..., None] | None = None) -> None:
        start = now(self.device)
        super().run_epoch(report)
        self.whole += now(self.device) - start

    def train_on(self, batch: Batch) -> None:
        self.examples_seen += len(batch)
        super().train_on(batch)

    def shuffled(self) -> Iterator[Batch]:
        batches = super().shuffled()
        while True:
            start = now(self.device)
            batch = next(batches, None)
            self.data_seconds += now(self.device) - start
            if batch is None:
                return
            yield batch

    def backward(self, loss: Tensor) -> None:
        with self.updating():
            super().backward(loss)

    def step(self) -> None:
        with self.updating():
            super().step()

    def update(self, loss: Tensor | Callable[[], Tensor]) -> None:
        with self.updating():
            super().update(loss)
