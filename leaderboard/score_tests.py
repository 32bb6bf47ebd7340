"""Tests of every pair of entries of a score table, intervals of their means, and the sample size that a pair needs."""

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from bench.core import clopper_pearson
from leaderboard.ranks import Matrix
from leaderboard.score_tables import ScoreTable
from leaderboard.significance import POWER, examples_needed, mcnemar, recipe_interval, seeds_needed, welch_matrix

DIGITS = 9  # digits to which scores are compared; further digits are rounding errors
TESTS = {
    "mcnemar": "the exact McNemar test on the examples that both have",
    "paired-t": (
        "the paired t-test on the examples that both have; its p-value is at least 2^(1 - m), the smallest that a test "
        "of the signs of m differing scores has"
    ),
    "seeds-t": "the t-test over seeds, with the degrees of freedom of the entry with fewer seeds",
}


def kind_of_test(table: ScoreTable) -> str:
    """The key of TESTS: mcnemar for scores that are all 0 or 1."""
    if table.rows == "seeds":
        return "seeds-t"
    known = table.scores[np.isfinite(table.scores)]
    return "mcnemar" if np.isin(known, (0.0, 1.0)).all() else "paired-t"


def compare_pairs(table: ScoreTable) -> tuple[Matrix, Matrix]:
    """Return, for each pair (N,N), the p-value and the mean score of the row minus the column, on the same examples.

    NaN without a test: no common examples, or a single seed.
    """
    return {"mcnemar": _mcnemar, "paired-t": _paired, "seeds-t": _over_seeds}[kind_of_test(table)](table)


def _mcnemar(table: ScoreTable) -> tuple[Matrix, Matrix]:
    right = (table.scores == 1).astype(np.float32)
    wrong = (table.scores == 0).astype(np.float32)
    only = (right @ wrong.T).astype(np.int64)  # integers below 2**24 are exact in float32
    common = (right + wrong) @ (right + wrong).T
    p = np.where(common > 0, mcnemar(only, only.T), np.nan)
    return p, (only - only.T) / np.maximum(common, 1)


def _paired(table: ScoreTable) -> tuple[Matrix, Matrix]:
    n = len(table.entries)
    p, ahead = np.full((n, n), np.nan), np.zeros((n, n))
    for i in range(n - 1):
        mean, deviation, common, differing = difference_of(table.scores[i], table.scores[i + 1 :])
        ahead[i, i + 1 :] = mean
        p[i, i + 1 :] = _paired_p(mean, deviation, common, differing)
    return np.fmin(p, p.T), ahead - ahead.T


def difference_of(
    row: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Row (M,) minus others (K,M): mean, standard deviation, common examples, examples that differ; (K,) each."""
    difference = np.round(row - others, DIGITS)
    known = np.isfinite(difference)
    common = known.sum(axis=1)
    difference[~known] = 0.0
    mean = difference.sum(axis=1) / np.maximum(common, 1)
    squares = np.square(np.where(known, difference - mean[:, None], 0.0)).sum(axis=1)
    return mean, np.sqrt(squares / np.maximum(common - 1, 1)), common, np.count_nonzero(difference, axis=1)


def _paired_p(mean: Matrix, deviation: Matrix, common: Matrix, differing: Matrix) -> Matrix:
    """Equal scores have p = 1. The lower limit keeps a few examples with the same difference from giving p = 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(differing > 0, np.abs(mean) / (deviation / np.sqrt(common)), 0.0)
    p = 2 * special.stdtr(np.maximum(common - 1, 1), -t)
    return np.where(common > 0, np.minimum(1.0, np.maximum(p, 2.0 ** (1 - differing))), np.nan)


def _over_seeds(table: ScoreTable) -> tuple[Matrix, Matrix]:
    counts = np.isfinite(table.scores).sum(axis=1)
    means = np.nanmean(table.scores, axis=1)
    squares = np.nansum(np.square(table.scores - means[:, None]), axis=1)
    p = welch_matrix(means, squares / np.maximum(counts - 1, 1), counts, grain(table))
    return p, np.round(means[:, None] - means[None, :], DIGITS)


def grain(table: ScoreTable) -> float:
    """The lower limit of the standard deviation over seeds: see leaderboard/significance.py.

    1/n for means over n examples. If n is not known, the smallest difference between two scores of the table: the means
    over n examples are multiples of 1/n, so it is not smaller than that.
    """
    if table.n_examples is not None:
        return 1 / table.n_examples
    values = np.unique(np.round(table.scores[np.isfinite(table.scores)], DIGITS))
    return float(np.diff(values).min()) if len(values) > 1 else 1.0


def needed(table: ScoreTable, i: int, j: int, alpha: float) -> int | None:
    """The examples, or seeds of each side, for which the test of i and j at level alpha has a power of 80 %.

    The observed differences are assumed to be the true ones. None if the means are equal, or a side has a single seed.
    """
    a, b = table.scores[i], table.scores[j]
    if table.rows == "seeds":
        return seeds_needed(a[np.isfinite(a)], b[np.isfinite(b)], grain(table), alpha=alpha)
    mean, deviation, common, _ = (float(value[0]) for value in difference_of(a, b[None]))
    if kind_of_test(table) == "mcnemar":
        only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((b == 1) & (a == 0)).sum())
        return examples_needed(only_a, only_b, int(common), alpha=alpha)
    if mean == 0:
        return None
    z = float(special.ndtri(1 - alpha / 2) + special.ndtri(POWER))
    least = 1 + math.ceil(math.log2(1 / alpha))  # for the lower limit of p
    return max(least, math.ceil((z * deviation / mean) ** 2 + z**2 / 2))  # the latter for Student's t


def mean_intervals(table: ScoreTable) -> tuple[Matrix, Matrix]:
    """95 % intervals of the mean scores, (N,) and (N,); NaN for a single seed or example.

    Clopper-Pearson for scores that are 0 or 1, Student's t for others, both over examples. For seeds, the intervals are
    over seeds, and also over examples if the table has them.
    """
    counts = np.isfinite(table.scores).sum(axis=1)
    means = np.nanmean(table.scores, axis=1)
    if kind_of_test(table) == "mcnemar":
        return clopper_pearson.interval(means * counts, counts)
    if table.n_examples is not None:
        ends = [_recipe_ends(row[np.isfinite(row)], table.n_examples) for row in table.scores]
        return np.array([low for low, _ in ends]), np.array([high for _, high in ends])
    squares = np.nansum(np.square(table.scores - means[:, None]), axis=1)
    deviation = np.maximum(np.sqrt(squares / np.where(counts > 1, counts - 1, np.nan)), grain(table))
    margin = special.stdtrit(np.maximum(counts - 1, 1), 0.975) * deviation / np.sqrt(counts)
    return means - margin, means + margin


def _recipe_ends(accuracies: Matrix, n: int) -> tuple[float, float]:
    if len(accuracies) < 2:
        return math.nan, math.nan
    low, high = recipe_interval(accuracies, n)
    return float(low), float(high)
