"""`bench ranks`: ranks from the scores of any board, and the sample size needed to distinguish more entries.

The rule is the same as for our boards (leaderboard/ranks.py), but scores need not be 0 or 1.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np

from bench.core.errors import UserError
from leaderboard.ranks import ALPHA, groups, ranks_from_p_values
from leaderboard.score_tables import ScoreTable
from leaderboard.score_tests import compare_pairs, kind_of_test, mean_intervals, needed


@dataclass(frozen=True)
class Neighbour:
    """An entry compared with the next one of the board.

    difference: of the mean scores on the examples that both have, positive if the first is better. p: adjusted; None
    without a test. needed: the number of examples (or seeds of each side) that gives a power of 80 % for one more claim
    of this board, if the observed difference is the true one; None if the difference is significant already, is 0, or
    cannot be tested.
    """

    difference: float
    p: float | None
    told_apart: bool
    needed: int | None


@dataclass(frozen=True)
class RankedEntry:
    """One line of the board. Ranks are None for an entry with a single seed; low and high are a 95 % interval."""

    name: str
    mean: float
    low: float | None
    high: float | None
    n: int
    rank_low: int | None
    rank_high: int | None
    group: int | None
    better_than: tuple[str, ...]
    next: Neighbour | None  # None for the last one


@dataclass(frozen=True)
class RankedTable:
    """The entries, the best first.

    test: a key of score_tests.TESTS. pairs: the number tested; told_apart: the number with a significant difference.
    """

    rows: str
    test: str
    entries: tuple[RankedEntry, ...]
    pairs: int
    told_apart: int

    @property
    def neighbours(self) -> list[Neighbour]:
        return [entry.next for entry in self.entries if entry.next is not None]


def rank_table(table: ScoreTable, *, lower_is_better: bool = False) -> RankedTable:
    """Rank entries by their mean score. lower_is_better: for scores that are errors or costs."""
    sign = -1.0 if lower_is_better else 1.0
    counts, means = np.isfinite(table.scores).sum(axis=1), np.nanmean(table.scores, axis=1)
    if len(means) < 2:
        raise UserError(f"the table has one entry, {table.entries[0]}; give the scores of at least two")
    p, ahead = compare_pairs(table)
    ranks = ranks_from_p_values(p, sign * ahead, counts > 1 if table.rows == "seeds" else counts > 0)
    order = sorted(range(len(means)), key=lambda i: (-sign * means[i], table.entries[i]))
    tested = int(np.isfinite(p[np.triu_indices(len(means), k=1)]).sum())
    told_apart = int(ranks.better.sum())
    level = ALPHA * min(told_apart + 1, tested) / max(tested, 1)  # the level of Benjamini-Hochberg's next claim

    def neighbour(i: int, j: int) -> Neighbour:
        known, better = math.isfinite(ranks.p[i, j]), bool(ranks.better[i, j])
        more = needed(table, i, j, level) if known and not better and sign * ahead[i, j] > 0 else None
        return Neighbour(sign * float(ahead[i, j]) + 0.0, float(ranks.p[i, j]) if known else None, better, more)

    group, (lows, highs) = groups(ranks, order), mean_intervals(table)
    entries = [
        RankedEntry(
            name=table.entries[i], mean=float(means[i]), low=_finite(lows[i]), high=_finite(highs[i]),
            n=int(counts[i]), rank_low=int(ranks.low[i]) if ranks.ranked[i] else None,
            rank_high=int(ranks.high[i]) if ranks.ranked[i] else None, group=group.get(i),
            better_than=tuple(table.entries[j] for j in order if ranks.better[i, j]), next=None,
        )
        for i in order
    ]  # fmt: skip
    for at, (i, j) in enumerate(itertools.pairwise(order)):
        entries[at] = dataclasses.replace(entries[at], next=neighbour(i, j))
    return RankedTable(table.rows, kind_of_test(table), tuple(entries), tested, told_apart)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
