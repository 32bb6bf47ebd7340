"""Hypothesis tests and confidence intervals for accuracies.

Networks with fixed weights are compared on paired examples (McNemar's test), recipes over their seeds (t-tests).
Accuracies on n examples are multiples of `grain` = 1/n, so a few seeds can agree by chance. Therefore the standard
deviation over seeds is taken to be at least one grain. In simulations with 360 examples, also near 100 % accuracy, the
false positive rate of the t-test was then at most 1.1 times the nominal 5 % and 1.3 times the nominal 0.03 %; with half
a grain it was up to 1.7 and 3.6 times the nominal one.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from bench.core import clopper_pearson

Numbers = npt.NDArray[np.float64]
Seeds = npt.ArrayLike | float  # the accuracy of each seed, or of a network with fixed weights
LEVEL = 0.95  # coverage of the intervals
POWER = 0.8  # probability of detecting the difference, for examples_needed and seeds_needed
MOST_SEEDS = 10**6  # the largest number that seeds_needed returns


@dataclass(frozen=True)
class MeanDifference:
    """mean(a) - mean(b) with its confidence interval and p-value; None if a side has a single seed."""

    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def recipe_interval(accuracies: npt.ArrayLike, n: int) -> tuple[Numbers, Numbers]:
    """The 95 % interval (low, high) for the expected accuracy of a recipe over its seeds and over examples.

    accuracies: (...,k) of k >= 2 seeds on the same n examples. Two half-widths are combined in quadrature: t s /
    sqrt(k) for the seeds, and that of the Clopper-Pearson interval at the mean accuracy. The latter is not divided by
    sqrt(k), because seeds that are tested on the same examples share the sampling error of these examples.

    In simulations (tests/leaderboard/recipe_simulation.py) the coverage is at least 95.4 % if mean + 2 s <= 1. Closer
    to 100 % the seeds' distribution is skewed, and the coverage falls to 81 % (mean 99 %, s = 10 points, 3 seeds).
    """
    values = np.asarray(accuracies, dtype=float)
    mean, k = values.mean(axis=-1), values.shape[-1]
    margin = special.stdtrit(k - 1, (1 + LEVEL) / 2) * values.std(axis=-1, ddof=1) / math.sqrt(k)
    low, high = clopper_pearson.interval(mean * n, n, (1 - LEVEL) / 2)
    ends = mean - np.hypot(mean - low, margin), mean + np.hypot(high - mean, margin)
    return np.maximum(0.0, ends[0]), np.minimum(1.0, ends[1])


def mcnemar(b: npt.ArrayLike, c: npt.ArrayLike) -> Numbers:
    """The exact two-sided p-value of McNemar's test (1947) for b and c discordant pairs, elementwise."""
    b, c = np.asarray(b), np.asarray(c)
    p: Numbers = np.minimum(1.0, 2 * special.bdtr(np.minimum(b, c), b + c, 0.5))
    return p


def paired_difference(b: npt.ArrayLike, c: npt.ArrayLike, n: npt.ArrayLike) -> tuple[Numbers, Numbers, Numbers]:
    """(b - c) / n of n paired examples, and the ends of an interval with a coverage of at least LEVEL.

    The difference is d (2q - 1), where d is the fraction of discordant pairs and q the fraction of b among them. The
    interval is the range of this product over the Clopper-Pearson intervals of q, with an error of 0.8 (1 - LEVEL), and
    of d, with an error of 0.2 (1 - LEVEL). By the union bound its error is at most 1 - LEVEL.
    """
    b, c, n = (np.asarray(value, dtype=float) for value in (b, c, n))
    q = np.stack(clopper_pearson.interval(b, b + c, 0.4 * (1 - LEVEL)))
    d = np.stack(clopper_pearson.interval(b + c, n, 0.1 * (1 - LEVEL)))
    ends = (2 * q - 1)[:, None] * d[None, :]
    return (b - c) / n, ends.min(axis=(0, 1)), ends.max(axis=(0, 1))


def paired_means(a: npt.ArrayLike, b: npt.ArrayLike) -> MeanDifference:
    """The paired t-test of scores (n,) of two networks on the same n examples; for many examples, or normal scores."""
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return MeanDifference(mean)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    margin = error * float(special.stdtrit(n - 1, (1 + LEVEL) / 2))
    p = float(_two_sided(mean / error, n - 1)) if error else float(mean == 0)
    return MeanDifference(mean, mean - margin, mean + margin, p)


def seeds_difference(a: Seeds, b: Seeds, grain: float, level: float = LEVEL) -> MeanDifference:
    """Welch's t-test (1947) of the accuracies of two recipes over their seeds; one-sample if a side is a float.

    The degrees of freedom are min(seeds) - 1, which is conservative (Mickey & Brown 1966). Welch's own approximation is
    not: with 3 and 5 seeds and unequal variances its false positive rate is 2.3 times the nominal 1 %.
    """
    (mean_a, variance_a, count_a), (mean_b, variance_b, count_b) = _summary(a), _summary(b)
    difference = mean_a - mean_b
    if min(count_a, count_b) < 2 or math.isinf(min(count_a, count_b)):
        return MeanDifference(difference)
    error, degrees = _error([variance_a, variance_b], [count_a, count_b], grain)
    margin = float(error * special.stdtrit(degrees, (1 + level) / 2))
    p = float(_two_sided(difference / error, degrees))
    return MeanDifference(difference, max(-1.0, difference - margin), min(1.0, difference + margin), p)


def welch_matrix(
    means: npt.ArrayLike, variances: npt.ArrayLike, counts: npt.ArrayLike, grain: npt.ArrayLike
) -> Numbers:
    """The p-values of seeds_difference for all pairs, (...,N) to (...,N,N); NaN if it would be None.

    variances: over seeds, unbiased. counts: of seeds, infinite for fixed weights. grain: a number or (...,N).
    """
    means, counts = np.asarray(means, dtype=float), np.asarray(counts, dtype=float)
    squares = np.maximum(np.asarray(variances, dtype=float), np.square(grain)) / counts
    smaller = np.minimum(counts[..., :, None], counts[..., None, :])
    degrees = np.where((smaller < 2) | np.isinf(smaller), np.nan, smaller - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (means[..., :, None] - means[..., None, :]) / np.sqrt(squares[..., :, None] + squares[..., None, :])
    return _two_sided(t, degrees)


def benjamini_hochberg(p: npt.ArrayLike) -> Numbers:
    """Adjusted p-values: rejecting those <= alpha controls the false discovery rate at alpha.

    Benjamini & Hochberg (1995). NaN stays NaN and does not count as a test.
    """

    def steps(sorted_p: Numbers) -> Numbers:
        scaled = sorted_p * (len(sorted_p) / np.arange(1, len(sorted_p) + 1))
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p, steps)


def holm(p: npt.ArrayLike) -> Numbers:
    """Adjusted p-values: rejecting those <= alpha controls the family-wise error rate at alpha (Holm 1979).

    NaN stays NaN and does not count as a test.
    """
    return _adjusted(p, lambda sorted_p: np.maximum.accumulate(sorted_p * np.arange(len(sorted_p), 0, -1)))


def prediction(baseline: npt.ArrayLike, m: int, level: float, grain: float) -> tuple[Numbers, Numbers]:
    """The prediction interval for the mean of m new seeds, from k of the baseline: mean +- t s sqrt(1/k + 1/m).

    baseline: (...,k).
    """
    old = np.asarray(baseline, dtype=float)
    margin = _prediction_error(old, m, grain) * special.stdtrit(old.shape[-1] - 1, (1 + level) / 2)
    return old.mean(axis=-1) - margin, old.mean(axis=-1) + margin


def prediction_p(baseline: npt.ArrayLike, new: npt.ArrayLike, grain: float) -> Numbers:
    """The p-value of the mean of new seeds, (...,m), given the baseline's, (...,k): see `prediction`."""
    old, new = np.asarray(baseline, dtype=float), np.asarray(new, dtype=float)
    t = (new.mean(axis=-1) - old.mean(axis=-1)) / _prediction_error(old, new.shape[-1], grain)
    return _two_sided(t, old.shape[-1] - 1)


def examples_needed(b: int, c: int, n: int, power: float = POWER, alpha: float = 0.05) -> int | None:
    """The number of paired examples for which McNemar's exact test has the given power.

    The observed b, c of n are assumed to be the true rates. None if b == c. Connor (1987), plus
    2 / |difference| because the exact test has less power than its normal approximation.
    """
    if b == c:
        return None
    discordant, difference = (b + c) / n, abs(b - c) / n
    z_alpha, z_power = special.ndtri(1 - alpha / 2), special.ndtri(power)
    root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
    return math.ceil((root / difference) ** 2 + 2 / difference)


def seeds_needed(a: Seeds, b: Seeds, grain: float, alpha: float = 0.05) -> int | None:
    """The number of seeds of each side for which seeds_difference has the power POWER (noncentral t distribution).

    The observed means and variances are assumed to be the true ones. None if the means are equal, a side has a single
    seed, or MOST_SEEDS are too few.
    """
    (mean_a, variance_a, count_a), (mean_b, variance_b, count_b) = _summary(a), _summary(b)
    if mean_a == mean_b or min(count_a, count_b) < 2 or math.isinf(min(count_a, count_b)):
        return None

    def suffice(seeds: int) -> bool:
        counts = [seeds if math.isfinite(count) else count for count in (count_a, count_b)]
        error, degrees = _error([variance_a, variance_b], counts, grain)
        threshold = special.stdtrit(degrees, 1 - alpha / 2)
        return bool(special.nctdtr(degrees, abs(mean_a - mean_b) / error, threshold) <= 1 - POWER)

    least = 2 + bisect_left(range(2, MOST_SEEDS), True, key=suffice)
    return least if least < MOST_SEEDS else None


def _summary(seeds: Seeds) -> tuple[float, float, float]:
    """Mean, variance and count. A fixed value counts as infinitely many equal seeds."""
    values = np.asarray(seeds, dtype=float)
    if values.ndim == 0:
        return float(values), 0.0, math.inf
    return float(values.mean()), float(values.var(ddof=1)) if len(values) > 1 else 0.0, float(len(values))


def _error(variances: list[float], counts: list[float], grain: float) -> tuple[float, float]:
    """The standard error of a difference of means, and its degrees of freedom."""
    squares = sum(max(variance, grain**2) / count for variance, count in zip(variances, counts, strict=True))
    return math.sqrt(squares), min(counts) - 1


def _prediction_error(baseline: Numbers, m: int, grain: float) -> Numbers:
    variance = np.maximum(baseline.var(axis=-1, ddof=1), grain**2)
    return np.sqrt(variance * (1 / baseline.shape[-1] + 1 / m))


def _two_sided(t: npt.ArrayLike, degrees: npt.ArrayLike) -> Numbers:
    p: Numbers = 2 * special.stdtr(degrees, -np.abs(t))
    return p


def _adjusted(p: npt.ArrayLike, steps: Any) -> Numbers:
    """Apply `steps` to the p-values that are not NaN in increasing order, and restore their order."""
    values = np.asarray(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    adjusted = np.full_like(values, np.nan)
    adjusted[order] = np.minimum(1.0, steps(values[order]))
    return adjusted
