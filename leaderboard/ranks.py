"""Ranks of the entries of a suite: every pair is tested, and a rank counts the significantly better entries.

Two networks with fixed weights are compared on the same examples (McNemar's exact test). A claim about a recipe is a
claim about seeds that were not run, so a recipe is compared over its seeds (t-test), with another recipe or with fixed
weights, and never from a single seed. The Benjamini-Hochberg procedure controls the false discovery rate among all
pairs of a suite at ALPHA.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from leaderboard.published_results import Entry
from leaderboard.significance import benjamini_hochberg, mcnemar, welch_matrix

ALPHA = 0.05
RULE = (
    "The rank of an entry is 1 + the number of entries that are significantly better. A range gives the best and the "
    "worst rank that the tests leave open. Two networks are compared on the same examples (exact McNemar test), two "
    "recipes over their seeds (t-test, with the degrees of freedom of the recipe with fewer seeds), on these test "
    "examples: the test covers other seeds, not other examples. The false "
    "discovery rate among all pairs of a suite is at most 5 % (Benjamini-Hochberg). An entry has no rank if it is a "
    "recipe with one seed, or one that nobody but its authors has trained, if it was not attacked, or if its verdict "
    "is unreliable. Fixed weights, which may have been trained on anything, do not count for the rank of a recipe."
)
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """Ranks of N entries. p (N,N): the adjusted p-value of each pair, NaN without a test.

    better (N,N): whether i is better than j. ranked (N,): whether claims about the entry can be made; see RULE. counts
    (N,N): whether the row can lower the rank of the column.
    """

    p: Matrix
    better: npt.NDArray[np.bool_]
    ranked: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.bool_]

    @cached_property
    def low(self) -> npt.NDArray[Any]:
        """1 + the number of entries that count and are significantly better, (N,)."""
        return np.asarray(1 + (self.better & self.counts).sum(axis=0))

    @cached_property
    def high(self) -> npt.NDArray[Any]:
        """The worst rank that the tests leave open, (N,): below all entries that are not significantly worse."""
        rivals = (self.ranked[:, None] & self.counts).sum(axis=0)
        return np.asarray(np.maximum(1, rivals) - (self.better & self.counts.T).sum(axis=1))


def rank(entries: Sequence[Entry]) -> Ranks:
    """Ranks by the accuracy under attack; UserError if two entries were evaluated on different data."""
    _check_same_data(entries)
    n = len(entries)
    ranked = np.array([_claimable(entry) for entry in entries], dtype=np.bool_)
    p, ahead = np.full((n, n), np.nan), np.zeros((n, n))
    sizes = np.array([_examples(entry) if ok else 0 for entry, ok in zip(entries, ranked, strict=True)])
    for size in sorted(set(sizes[ranked].tolist())):  # a pair is compared on the examples that both have
        large = np.flatnonzero(sizes >= size)
        block, here = np.ix_(large, large), np.minimum.outer(sizes[large], sizes[large]) == size
        p_large, ahead_large = _pairs([entries[i] for i in large.tolist()], size)
        p[block], ahead[block] = np.where(here, p_large, p[block]), np.where(here, ahead_large, ahead[block])
    recipe = np.array([entry.recipe for entry in entries], dtype=np.bool_)
    return ranks_from_p_values(p, ahead, ranked, recipe[:, None] | ~recipe[None, :])


def ranks_from_p_values(
    p: Matrix, ahead: Matrix, ranked: npt.NDArray[np.bool_], counts: npt.NDArray[np.bool_] | None = None
) -> Ranks:
    """Compute ranks from the p-value of each pair (N,N), NaN without a test, and the row's lead over the column (N,N).

    counts: see Ranks; None if every entry counts for every rank.
    """
    counts = np.ones_like(p, dtype=np.bool_) if counts is None else counts
    upper = np.triu_indices(len(p), k=1)
    adjusted = np.full_like(p, np.nan)
    adjusted[upper] = benjamini_hochberg(p[upper])
    adjusted.T[upper] = adjusted[upper]
    return Ranks(adjusted, (np.nan_to_num(adjusted, nan=1.0) <= ALPHA) & (ahead > 0), ranked, counts)


def groups(ranks: Ranks, order: Sequence[int]) -> dict[int, int]:
    """Entry -> group. A group ends before the first entry that its own first entry is significantly better than.

    order: the entries, the best first. Entries without a rank are in no group.
    """
    found: dict[int, int] = {}
    number, first = 0, -1
    for i in order:
        if ranks.ranked[i]:
            if not number or ranks.better[first, i]:
                number, first = number + 1, i
            found[i] = number
    return found


def _robust(entry: Entry, n: int) -> npt.NDArray[np.float32]:
    """Which of the first n examples are robust, (runs, n). Several evaluations of fixed weights are one row."""
    runs = np.stack([run.robust[:n] for run in entry.runs])
    return np.asarray(runs if entry.recipe else runs.all(axis=0, keepdims=True), dtype=np.float32)


def _claimable(entry: Entry) -> bool:
    reliable = all(run.record.sanity.verdict in ("no-warnings", "submitted-code", "suspect") for run in entry.runs)
    of_seeds = len(entry.runs) > 1 and entry.reproduced is not None
    return entry.measured and reliable and (of_seeds or not entry.recipe)


def _examples(entry: Entry) -> int:
    return min(len(run.robust) for run in entry.runs)


def _pairs(entries: Sequence[Entry], n: int) -> tuple[Matrix, Matrix]:
    """The p-value of each pair on the first n examples, and the row's accuracy minus the column's, (N,N)."""
    runs = [_robust(entry, n) for entry in entries]
    accuracies = [each.mean(axis=1, dtype=np.float64) for each in runs]
    means = np.array([each.mean() for each in accuracies])
    recipe = np.array([entry.recipe for entry in entries], dtype=np.bool_)
    p = np.full((len(entries), len(entries)), np.nan)
    if recipe.any():
        variances = np.array([each.var(ddof=1) if len(each) > 1 else 0.0 for each in accuracies])
        counts = np.where(recipe, [float(len(each)) for each in accuracies], np.inf)
        p = welch_matrix(means, variances, counts, 1 / n)
    weights = np.flatnonzero(~recipe)
    if len(weights) > 1:
        robust = np.concatenate([runs[i] for i in weights])
        both = robust @ robust.T  # integers below 2**24 are exact in float32
        only = (np.diag(both)[:, None] - both).astype(np.int64)
        p[np.ix_(weights, weights)] = mcnemar(only, only.T)
    return p, means[:, None] - means[None, :]


def _check_same_data(entries: Sequence[Entry]) -> None:
    examples: dict[str, str] = {}  # hash of the data -> an entry that was evaluated on it
    for entry in entries:
        for run in entry.runs:
            examples.setdefault(str(run.record.provenance.get("data_hash")), entry.name)
    if len(examples) > 1:
        raise UserError(f"{' and '.join(examples.values())} were evaluated on different data; remove one of them")
