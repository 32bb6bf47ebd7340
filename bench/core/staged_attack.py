"""Attacks that consist of stages. bench/evaluate/cascade.py runs stages of attacks and certifiers in order."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from bench.core.contracts import Attack, Certifier
from bench.core.threat import ThreatModel

# A stage that breaks no more than this many examples, or this share of those attacked, may have done so by chance.
BROKEN_BY_CHANCE = 2
SHARE_BY_CHANCE = 0.02

MethodT_co = TypeVar("MethodT_co", bound=Attack | Certifier, covariant=True)


def was_effective(broken: int, attacked: int) -> bool:
    """Whether a stage broke more examples than chance explains."""
    return broken > max(BROKEN_BY_CHANCE, SHARE_BY_CHANCE * attacked)


@dataclass(frozen=True)
class Stage(Generic[MethodT_co]):
    """An attack or a certifier, for the examples that are still open.

    share: the stage takes only this share of them, those of smallest margin at their worst point so far.
    when: it runs only if the stage of this name was effective.
    batch: the largest batch size.
    """

    name: str
    method: MethodT_co
    share: float = 1.0
    when: str | None = None
    batch: int | None = None

    def choose(self, margins: Tensor) -> Tensor:
        """Which of the open examples to take, (b,) int64 in ascending order, given their margins (B,)."""
        return margins.argsort(stable=True)[: math.ceil(self.share * len(margins))].sort().values

    def is_due(self, effective: Mapping[str, bool]) -> bool:
        """Whether to run, given which of the earlier stages were effective."""
        return self.when is None or effective.get(self.when, False)


@dataclass(frozen=True, kw_only=True)
class StagedAttack(Attack):
    """An attack that consists of others: each stage attacks what the earlier, cheaper stages did not break.

    The evaluator runs a stage on all open examples of a test set, in full batches; `perturb` does the same within one
    batch.
    """

    @abstractmethod
    def stages(self, threat: ThreatModel, classes: int) -> Sequence[Stage[Attack]]:
        """The stages, in order, against a model with `classes` classes under `threat`."""
