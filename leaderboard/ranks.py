"""Who is better than whom: every pair of a suite's entries is tested, and a rank is what the tests leave open.

Two networks with fixed weights are compared example by example (McNemar's exact test). A recipe is a way of training:
a claim about it is one about seeds that nobody has run yet, so it is tested over seeds (a t test), against another
recipe or against fixed weights, and never claimed from one seed. Benjamini and Hochberg's procedure holds the share of
false claims among all pairs of a suite at ALPHA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from leaderboard.published_results import Entry
from leaderboard.statistics import benjamini_hochberg, mcnemar, welch_matrix

ALPHA = 0.05
RULE = (
    "An entry's rank is 1 + the number of entries that are significantly better, and it is shown with the worst rank "
    "that the tests leave open. Two networks are compared example by example (exact McNemar test), two ways of "
    "training over their seeds (t test, as many degrees of freedom as the smaller side has); of all pairs of a suite "
    "that are told apart, at most 5 % are so by chance (Benjamini and Hochberg). An entry of one seed, without an "
    "attack, or with an unreliable verdict has no rank."
)
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """Of N entries: adjusted p of each pair (N,N), nan where nothing can be claimed; whether row i is better than j."""

    p: Matrix
    better: npt.NDArray[np.bool_]
    ranked: npt.NDArray[np.bool_]

    @cached_property
    def low(self) -> npt.NDArray[Any]:
        """1 + how many are significantly better, (N,)."""
        return np.asarray(1 + self.better.sum(axis=0))

    @cached_property
    def high(self) -> npt.NDArray[Any]:
        """The worst rank that is open: behind all that this entry is not significantly better than, (N,)."""
        return np.asarray(max(1, int(self.ranked.sum())) - self.better.sum(axis=1))


def rank(entries: Sequence[Entry]) -> Ranks:
    """Ranks by the accuracy under attack; UserError where two entries were measured on other data."""
    _check_same_data(entries)
    n = len(entries)
    ranked = np.array([_claimable(entry) for entry in entries], dtype=np.bool_)
    p, ahead = np.full((n, n), np.nan), np.zeros((n, n))
    sizes = np.array([_examples(entry) if ok else 0 for entry, ok in zip(entries, ranked, strict=True)])
    for size in sorted(set(sizes[ranked].tolist())):  # a pair is compared on the examples that both have
        here = np.flatnonzero(sizes >= size)
        pair = sizes[here, None].clip(max=sizes[None, here]) == size
        p_here, ahead_here = _pairs([entries[i] for i in here.tolist()], size)
        rows, columns = np.nonzero(pair)
        p[here[rows], here[columns]] = p_here[rows, columns]
        ahead[here[rows], here[columns]] = ahead_here[rows, columns]
    upper = np.triu_indices(n, k=1)
    adjusted = np.full((n, n), np.nan)
    adjusted[upper] = benjamini_hochberg(p[upper])
    adjusted.T[upper] = adjusted[upper]
    return Ranks(adjusted, (np.nan_to_num(adjusted, nan=1.0) <= ALPHA) & (ahead > 0), ranked)


def robust_runs(entry: Entry, n: int) -> npt.NDArray[np.float32]:
    """Who of the first n examples stands, a row a run; fixed weights, however often evaluated, are one row."""
    runs = np.stack([run.robust[:n] for run in entry.runs])
    return np.asarray(runs if entry.recipe else runs.all(axis=0, keepdims=True), dtype=np.float32)


def _claimable(entry: Entry) -> bool:
    reliable = all(run.record.sanity.verdict in ("clean", "suspect") for run in entry.runs)
    return entry.measured and reliable and (not entry.recipe or len(entry.runs) > 1)


def _examples(entry: Entry) -> int:
    return min(len(run.robust) for run in entry.runs)


def _pairs(entries: Sequence[Entry], n: int) -> tuple[Matrix, Matrix]:
    """p of each pair on the first n examples, and by how much the row's accuracy is ahead of the column's, (N,N)."""
    runs = [robust_runs(entry, n) for entry in entries]
    accuracies = [each.mean(axis=1, dtype=np.float64) for each in runs]
    means = np.array([each.mean() for each in accuracies])
    recipe = np.array([entry.recipe for entry in entries], dtype=np.bool_)
    p = np.full((len(entries), len(entries)), np.nan)
    if recipe.any():
        variances = np.array([each.var(ddof=1) if len(each) > 1 else 0.0 for each in accuracies])
        counts = np.array([len(each) if way else np.inf for each, way in zip(accuracies, recipe, strict=True)])
        p = welch_matrix(means, variances, counts, 1 / n)
    weights = np.flatnonzero(~recipe)
    if len(weights) > 1:
        stands = np.concatenate([runs[i] for i in weights])
        both = stands @ stands.T  # whole numbers below 2**24: exact in float32
        only = (np.diag(both)[:, None] - both).astype(np.int64)
        p[np.ix_(weights, weights)] = mcnemar(only, only.T)
    return p, means[:, None] - means[None, :]


def _check_same_data(entries: Sequence[Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        for run in entry.runs:
            seen.setdefault(str(run.record.provenance.get("data_hash")), entry.name)
    if len(seen) > 1:
        raise UserError(f"{' and '.join(seen.values())} were measured on other data than each other; take one out")
