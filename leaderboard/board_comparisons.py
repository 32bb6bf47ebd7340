"""Data for comparing entries on the page: a test of every pair, and the examples that each seed gets right.

The tests are the same as in `bench compare`. The adjusted p-value and `better` come from the board's ranks.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

import msgspec
import numpy as np

from bench.core.errors import UserError
from bench.core.example_table import Flags
from leaderboard.pairwise_comparison import Difference, Side, compare
from leaderboard.published_results import Entry, EvaluatedRun
from leaderboard.ranks import Ranks

DIGITS = 4  # significant digits of the numbers that the page shows
MOST = 100  # the first entries of the board are compared; the size of the page grows quadratically


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """The examples that each seed of one entry gets right, as base64 of bits, the first example in the highest bit."""

    name: str
    seeds: tuple[int, ...]
    robust: tuple[str, ...]  # for each seed: not broken by anything
    certified: tuple[str, ...]


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """The difference a - b of one accuracy (clean, robust or certified); a JSON array, because there are many.

    a, b: places in `outcomes`; a is above b on the board. low, high, p: of `test`; None if a recipe has only one seed.
    needed: see pairwise_comparison.Difference. adjusted, better: from the board's ranks by robust accuracy; None if the
    board claims nothing about the pair.
    """

    a: int
    b: int
    metric: str
    n: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str = ""
    needed: int | None = None
    adjusted: float | None = None
    better: int | None = None  # 1 if a is significantly better, -1 if b is, 0 if neither


class Untested(msgspec.Struct, frozen=True, array_like=True):
    """Two entries that are not comparable, and why."""

    a: int
    b: int
    reason: str


class Comparisons(msgspec.Struct, frozen=True, kw_only=True):
    """labels: of the first n test examples, which all outcomes refer to. most: the number of entries compared."""

    suite: str
    most: int = MOST
    labels: tuple[int, ...] = ()
    outcomes: tuple[Outcomes, ...] = ()
    pairs: tuple[Pair, ...] = ()
    untested: tuple[Untested, ...] = ()


def comparisons(suite: str, entries: Sequence[Entry], ranks: Ranks, order: Sequence[int]) -> Comparisons:
    """Compare the first `MOST` entries. order: the board's, as positions in `entries`, which are those of `ranks`."""
    measured = [i for i in order if entries[i].runs][:MOST]
    sides = [_side(entries[i]) for i in measured]
    pairs: list[Pair] = []
    untested: list[Untested] = []
    for a, b in combinations(range(len(measured)), 2):
        try:
            found = compare(sides[a], sides[b])
        except UserError as error:
            untested.append(Untested(a, b, str(error)))
            continue
        pairs += [_pair(a, b, each, ranks, (measured[a], measured[b])) for each in found]
    runs = [run for i in measured for run in entries[i].runs]
    longest = max((run for run in runs if run.labels is not None), key=lambda run: len(run.clean), default=None)
    return Comparisons(
        suite=suite, labels=() if longest is None or longest.labels is None else tuple(longest.labels.tolist()),
        outcomes=tuple(_outcomes(entries[i]) for i in measured), pairs=tuple(pairs), untested=tuple(untested),
    )  # fmt: skip


def _pair(a: int, b: int, found: Difference, ranks: Ranks, places: tuple[int, int]) -> Pair:
    """Make the pair of a and b. places: their positions in `ranks`."""
    adjusted = ranks.p[places] if found.metric == "robust" else np.nan
    better = int(ranks.better[places]) - int(ranks.better[places[::-1]])
    return Pair(
        a, b, found.metric, found.n, float(f"{found.difference:.{DIGITS}g}"), _short(found.low), _short(found.high),
        _short(found.p), found.test, found.needed, *((_short(adjusted), better) if np.isfinite(adjusted) else ()),
    )  # fmt: skip


def _side(entry: Entry) -> Side:
    """The runs of an entry. Several evaluations of fixed weights form one run: broken by any of them is broken."""
    first, *others = entry.runs
    if entry.recipe or not others:
        return Side(entry.about.title, entry.runs)
    merged = replace(first, clean=_of_all(entry.runs, "clean"), robust=_of_all(entry.runs, "robust"))
    return Side(entry.about.title, (merged,))


def _of_all(runs: Iterable[EvaluatedRun], key: str) -> Flags:
    columns = [getattr(run, key) for run in runs]
    n = min(map(len, columns))
    return np.asarray(np.logical_and.reduce([column[:n] for column in columns]), dtype=np.bool_)


def _outcomes(entry: Entry) -> Outcomes:
    return Outcomes(
        name=entry.name, seeds=tuple(run.record.seed for run in entry.runs),
        robust=tuple(_bits(run.robust) for run in entry.runs),
        certified=tuple(_bits(run.certified) for run in entry.runs),
    )  # fmt: skip


def _bits(flags: Flags) -> str:
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
