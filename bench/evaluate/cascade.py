"""The one scheduler: stages run on the examples that are still open, cheap before dear, in full batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Attack, Batch, Certifier
from bench.core.staged_attack import Stage, has_paid
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.batch_results import Part, attack_batch, certify_batch, keep, kept

Done = tuple[Stage[Attack | Certifier], Part]


def run_cascade(
    model: nn.Module,
    test: Split,
    stages: Sequence[Stage[Attack | Certifier]],
    *,
    name: str,
    threat: ThreatModel,
    right: npt.NDArray[np.bool_],
    batch_size: int,
    seed: int,
    parts: Path | None = None,
    report: Callable[[int, str], None] | None = None,
    budget: float = math.inf,
    hints: bool = False,
) -> Iterator[Done]:
    """Run each stage on what the earlier ones left open of the examples that the model gets `right`.

    threat: what certifiers certify; an attack has its own. Before a stage its examples are packed into batches anew, in
    test order, so that the device stays full. A batch's randomness depends on the seed, the name, the stage and its
    number alone. With a folder `parts`, what is done is kept there, and a later call finds it again.
    report(examples, stage) is told of each finished batch. budget: no batch begins once the parts have taken so many
    seconds. hints: certifiers are given the worst allowed point that the attacks before them found.
    """
    still = Open.of(test, right, points=hints)
    paid: dict[str, bool] = {}
    rounds: Counter[str] = Counter()  # how often each stage's name has come
    spent = 0.0
    for stage in stages:
        if len(still.index) == 0 or not stage.is_due(paid):
            continue
        chosen = stage.choose(still.margin)
        rounds[stage.name] += 1
        title = f"{name}/{stage.name}" + (f"#{rounds[stage.name]}" if rounds[stage.name] > 1 else "")
        for number, rows in enumerate(chosen.split(min(stage.batch or batch_size, batch_size))):
            if spent >= budget:
                return
            key = f"{title}/{number}"
            batch = test.take(still.index[rows].to(test.y.device))
            part = kept(parts, key, batch, stage.method)
            if part is None:
                generator = seeds.generator(batch.x.device, seed, key)
                if isinstance(stage.method, Attack):
                    part = attack_batch(model, stage.method, batch, generator, points=hints)
                else:
                    certifier = within(stage.method, budget - spent)
                    part = certify_batch(model, certifier, batch, threat, generator, hint=still.hint(rows, batch))
                keep(parts, key, part)
            spent += float(part["seconds"])
            still.learn(rows, part)
            yield stage, part
            if report is not None:
                report(len(rows), stage.name)
        paid[stage.name] = has_paid(int(still.fell.sum()), len(chosen))
        still = still.rest()


def within(certifier: Certifier, seconds: float) -> Certifier:
    """The certifier with no more time than that for an example, where it has such a limit (an option `seconds`)."""
    limit = getattr(certifier, "seconds", None)
    return certifier if limit is None or limit <= seconds else replace(certifier, seconds=seconds)  # type: ignore[call-arg]


@dataclass
class Open:
    """The examples that no earlier stage has decided, and what is known of each.

    index (n,) in the split; margin (n,): the lowest so far; points (n,C,H,W): where that was, if hints are wanted;
    fell, proven (n,): what the present stage has decided.
    """

    index: Tensor
    margin: Tensor
    points: Tensor | None
    fell: Tensor
    proven: Tensor

    @classmethod
    def of(cls, test: Split, right: npt.NDArray[np.bool_], *, points: bool) -> Open:
        index = torch.from_numpy(np.flatnonzero(right))
        none = torch.zeros(len(index), dtype=torch.bool)
        images = test.take(index.to(test.y.device)).x.cpu() if points else None
        return cls(index, torch.full((len(index),), torch.inf), images, none, none.clone())

    def hint(self, rows: Tensor, batch: Batch) -> Tensor | None:
        return None if self.points is None else self.points[rows].to(batch.x.device)

    def learn(self, rows: Tensor, part: Part) -> None:
        """What a stage found of some of the rows."""
        self.fell[rows] = torch.from_numpy(part["broken"])
        self.proven[rows] = torch.from_numpy(part["certified"])
        if "margin" in part:
            margin = torch.from_numpy(part["margin"])
            lower = margin < self.margin[rows]
            self.margin[rows[lower]] = margin[lower]
            if self.points is not None:
                self.points[rows[lower]] = torch.from_numpy(part["points"])[lower]

    def rest(self) -> Open:
        """The examples that the present stage has left open."""
        stay = ~(self.fell | self.proven)
        none = torch.zeros(int(stay.sum()), dtype=torch.bool)
        points = None if self.points is None else self.points[stay]
        return Open(self.index[stay], self.margin[stay], points, none, none.clone())
