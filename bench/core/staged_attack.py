"""What the one scheduler (bench/evaluate/cascade.py) runs: attacks and certifiers, one after the other."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from bench.core.contracts import Attack, Certifier
from bench.core.threat import ThreatModel

LUCK = 2  # hits that are no reason for a long stage, and neither is
LUCKY_SHARE = 0.02  # this share of what was attacked

MethodT_co = TypeVar("MethodT_co", bound=Attack | Certifier, covariant=True)


def has_paid(broken: int, attacked: int) -> bool:
    """Whether a stage broke more than luck would."""
    return broken > max(LUCK, LUCKY_SHARE * attacked)


@dataclass(frozen=True)
class Stage(Generic[MethodT_co]):
    """An attack or a certifier, on the examples that are still open.

    share: only so many of them, those whose margin at their worst point so far is the smallest. when: only if the
    stage of that name has paid. batch: at most so many examples at a time, where there is a budget to keep.
    """

    name: str
    method: MethodT_co
    share: float = 1.0
    when: str | None = None
    batch: int | None = None

    def choose(self, margins: Tensor) -> Tensor:
        """Which of the open examples to take, (b,) int64 in ascending order, given their margins (B,)."""
        return margins.argsort(stable=True)[: math.ceil(self.share * len(margins))].sort().values

    def is_due(self, paid: Mapping[str, bool]) -> bool:
        """Whether to run, given which of the earlier stages has paid."""
        return self.when is None or paid.get(self.when, False)


@dataclass(frozen=True, kw_only=True)
class StagedAttack(Attack):
    """An attack made of others: each stage attacks what the earlier ones left standing, cheap before dear.

    The evaluator's scheduler runs a stage on all open examples of a test set, in full batches; `perturb` does the same
    within one batch.
    """

    @abstractmethod
    def stages(self, threat: ThreatModel, classes: int) -> Sequence[Stage[Attack]]:
        """The stages, in order, against a model with `classes` classes under `threat`."""
