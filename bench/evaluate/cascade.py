"""The scheduler: runs attacks and certifiers stage by stage on the examples that are still open, in full batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench.core import seeds
from bench.core.contracts import Attack, Certifier
from bench.core.example_table import Flags
from bench.core.failures import failures_of
from bench.core.staged_attack import Stage, was_effective
from bench.datasets.split import Split
from bench.evaluate.batch_results import AttackBatch, BatchResult, read_result, run_attack, run_certifier, write_result
from bench.evaluate.context import EvalContext, MissingBatches

# called after each batch with its share of the progress and the name of its stage; the shares sum to `examples`
Report = Callable[[float, str], None]


def run_cascade(
    context: EvalContext,
    stages: Sequence[Stage[Attack | Certifier]],
    *,
    name: str,
    examples: Flags,
    report: Report | None = None,
    time_limit: float = math.inf,
    worst_points: bool = False,
) -> Iterator[tuple[Stage[Attack | Certifier], BatchResult]]:
    """Run each stage on those of `examples` (N,) that the earlier stages have not decided.

    Each stage packs its examples into new batches, in test order, so that the device stays full. The randomness of a
    batch depends only on the seed, the name, the stage and the number of the batch. time_limit: no batch starts once
    the batches before it have taken this many seconds. worst_points: whether certifiers get the points of lowest margin
    that the attacks before them found, as `batch.worst_points`. Raises MissingBatches at the end of a stage if the
    context's shard computes only some of its batches, and the others are not stored.
    """
    remaining = OpenExamples.of(context.test, examples, store_points=worst_points)
    effective: dict[str, bool] = {}
    rounds: Counter[str] = Counter()  # how often a stage of this name has run
    spent, share = 0.0, len(remaining.index) / max(len(stages), 1)
    report = report or _ignore
    for stage in stages:
        if len(remaining.index) == 0 or not stage.is_due(effective):
            report(share, "")
            continue
        chosen = stage.choose(remaining.margin)
        rounds[stage.name] += 1
        title = f"{name}/{stage.name}" + (f"#{rounds[stage.name]}" if rounds[stage.name] > 1 else "")
        missing = False
        for number, rows in enumerate(chosen.split(min(stage.batch or context.batch_size, context.batch_size))):
            if spent >= time_limit:
                return
            compute = context.shard is None or context.shard.has(title, number)
            with failures_of(_describe(stage, name)):
                key, seconds = f"{title}/{number}", time_limit - spent
                result = _run_batch(context, stage.method, remaining, rows, key, seconds=seconds, compute=compute)
            if result is None:
                missing = True
                continue
            spent += result.seconds
            remaining.update(rows, result)
            yield stage, result
            report(share * len(rows) / len(chosen), stage.name)
        if missing:
            raise MissingBatches
        effective[stage.name] = was_effective(int(remaining.broken.sum()), len(chosen))
        remaining = remaining.undecided()


def _ignore(examples: float, stage: str) -> None:
    """A report that does nothing."""


def _run_batch(
    context: EvalContext,
    method: Attack | Certifier,
    remaining: OpenExamples,
    rows: Tensor,
    key: str,
    *,
    seconds: float,
    compute: bool,
) -> BatchResult | None:
    """The result of one batch, read from the folder of partial results, or computed and stored there if `compute`."""
    device = context.test.y.device
    batch = context.test.take(remaining.index[rows].to(device))
    result = read_result(context, key, batch, method)
    if result is None and compute:
        generator = seeds.generator(device, context.seed, key)
        points = remaining.points
        if isinstance(method, Attack):
            result = run_attack(context, method, batch, generator, store_points=points is not None)
        else:
            batch = replace(batch, worst_points=None if points is None else points[rows].to(device))
            result = run_certifier(context, method, batch, generator, seconds=seconds)
        write_result(context, key, result)
    return result


def _describe(stage: Stage[Attack | Certifier], name: str) -> str:
    """Name a stage of the attack, certifier or bracket `name` for error messages."""
    if not stage.name:
        return f"attack {name}" if isinstance(stage.method, Attack) else name
    return f"stage {stage.name} of {name}"


@dataclass
class OpenExamples:
    """The examples that no earlier stage has decided, and what is known about each.

    index (n,) in the split; margin (n,): the lowest so far; points (n,C,H,W): the points of lowest margin, or None;
    broken and certified (n,): the decisions of the current stage.
    """

    index: Tensor
    margin: Tensor
    points: Tensor | None

    def __post_init__(self) -> None:
        self.broken, self.certified = torch.zeros((2, len(self.index)), dtype=torch.bool)

    @classmethod
    def of(cls, test: Split, examples: Flags, *, store_points: bool) -> OpenExamples:
        index = torch.from_numpy(np.flatnonzero(examples))
        images = test.take(index.to(test.y.device)).x.cpu() if store_points else None
        return cls(index, torch.full((len(index),), torch.inf), images)

    def update(self, rows: Tensor, result: BatchResult) -> None:
        """Add the result of the current stage for some of the rows."""
        self.broken[rows] = torch.from_numpy(result.broken)
        self.certified[rows] = torch.from_numpy(result.certified)
        if isinstance(result, AttackBatch):
            margin = torch.from_numpy(result.margin)
            lower = margin < self.margin[rows]
            self.margin[rows[lower]] = margin[lower]
            if self.points is not None:
                self.points[rows[lower]] = torch.from_numpy(result.points)[lower]

    def undecided(self) -> OpenExamples:
        """The examples that the current stage has not decided."""
        rows = ~(self.broken | self.certified)
        return OpenExamples(self.index[rows], self.margin[rows], None if self.points is None else self.points[rows])
