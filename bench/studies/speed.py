"""`bench study speed`: what a step of each defense costs, and what it is spent on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core import registry
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.datasets.split import Split
from bench.runs.plan import Plan
from bench.studies.study import ModelStudy
from bench.training.loop import Loop
from leaderboard.render import render

HEADERS = [
    "defense", "ms a step", "of standard", "work of standard", "passes of standard", "attack %", "update %", "data %",
]  # fmt: skip
BASE = "standard"


@registry.study("speed")
@dataclass(frozen=True, kw_only=True)
class SpeedStudy(ModelStudy):
    """Milliseconds of a training step of each defense, beside its passes, and how they divide.

    A pass is a forward or a backward pass of one example. work: a forward pass is one unit, a backward pass to the
    images one, and one to the weights of an update two, as many as the multiply-adds of each. The ratios are those of
    one example in one step to `standard`, so a defense whose time is that of its work has twice the same number.
    update: the loss, its gradient and the optimizer; data: making the batches; attack: the rest of a step. A defense
    that computes its loss before `trainer.update` has the forward pass of the update under attack. Defenses that cannot
    be trained without further settings are listed below. On a CPU, times are those of this process on the processor, so
    that other programs hardly change them.
    """

    suite: str = "digits"  # its data, model and settings
    defenses: tuple[str, ...] = ()  # names, separated by commas; none: all
    epochs: int = 2  # that are timed, after one that is not

    def run(self) -> str:
        if self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}; it must be at least 1")
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
                        overrides={"epochs": str(self.epochs + 1), "probe_every": "0", "select": "last"},
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
            ]
            for name, cost in costs.items()
        ]  # fmt: skip
        text = render(HEADERS, rows, align="l" + "r" * (len(HEADERS) - 1))
        return "\n\n".join([f"suite {self.suite}, {self.epochs} epochs", text, *left_out])


@dataclass(frozen=True)
class Cost:
    """Of some epochs. passes, work: per example and step; parts: seconds of attack, update, data."""

    seconds: float
    steps: int
    examples: int  # in all steps
    passes: float
    work: float
    parts: tuple[float, float, float]

    @property
    def per_example(self) -> float:
        return self.seconds / self.examples


def cost_of(plan: Plan, epochs: int) -> Cost:
    """Train for one epoch and then for `epochs` more, and the cost of these."""
    assert plan.defense is not None
    config = plan.defense.config
    split = Split(
        plan.arrays.x_train, plan.arrays.y_train, plan.device, crop=config.crop, flip=config.flip, cutout=config.cutout,
        cutmix=config.cutmix,
    )  # fmt: skip
    loop = TimedLoop(plan.new_model(0), plan.defense, split, plan.threat, seed=0)
    loop.run_epoch()
    loop.clear()
    for _ in range(epochs):
        loop.run_epoch()
    made = loop.passes.forwards + loop.passes.backwards - loop.passes_before
    work = made + loop.backwards_of_updates
    parts = (loop.whole - loop.update_seconds - loop.data_seconds, loop.update_seconds, loop.data_seconds)
    seen = loop.examples_seen
    return Cost(loop.whole, epochs * loop.steps_per_epoch, seen, made / seen, work / seen, parts)


class TimedLoop(Loop):
    """A training loop that adds up the time of its parts."""

    update_seconds = data_seconds = whole = 0.0
    examples_seen = passes_before = backwards_of_updates = 0
    _depth = 0  # of nested calls that are timed as update

    def clear(self) -> None:
        """Forget the times so far."""
        self.update_seconds = self.data_seconds = self.whole = 0.0
        self.examples_seen, self.passes_before = 0, self.passes.forwards + self.passes.backwards
        self.backwards_of_updates = 0

    def now(self) -> float:
        """Seconds, after everything that was started on the device; of this process alone on a CPU."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """The block is part of an update."""
        start, backwards, self._depth = self.now(), self.passes.backwards, self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.update_seconds += self.now() - start
                self.backwards_of_updates += self.passes.backwards - backwards

    def run_epoch(self, report: Callable[..., None] | None = None) -> None:
        start = self.now()
        super().run_epoch(report)
        self.whole += self.now() - start

    def train_on(self, batch: Batch) -> None:
        self.examples_seen += len(batch)
        super().train_on(batch)

    def shuffled(self) -> Iterator[Batch]:
        batches = super().shuffled()
        while True:
            start = self.now()
            batch = next(batches, None)
            self.data_seconds += self.now() - start
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
