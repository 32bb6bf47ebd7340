"""Tests and intervals of accuracies: numbers in, numbers out.

Networks are compared example by example (McNemar); ways of training, by their seeds (Student's t). Accuracies are
multiples of `grain` = 1/n, so few seeds may agree by luck: the standard deviation over seeds is never taken to be below
one grain. In simulations of 360 examples, near 100 % too, half a grain gave up to 1.7 times the promised 5 % of false
alarms and 3.6 times the promised 0.03 %; one grain, 1.1 and 1.3 times.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Numbers = npt.NDArray[np.float64]
Seeds = npt.ArrayLike | float  # the accuracy of each seed, or the one value of a network with fixed weights
LARGEST = 10**6  # seeds that anybody might be asked for


@dataclass(frozen=True)
class SeedsTest:
    """Mean of a less mean of b; its interval and p-value, which are None where a side has a single seed."""

    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def clopper_pearson(hits: npt.ArrayLike, n: npt.ArrayLike, level: float = 0.95) -> tuple[Numbers, Numbers]:
    """The exact interval of a share of n examples, elementwise (Clopper & Pearson 1934).

    hits: 0 to n; need not be whole, for a mean over seeds.
    """
    k, n = np.broadcast_arrays(np.asarray(hits, dtype=float), np.asarray(n, dtype=float))
    tail = (1 - level) / 2
    inside = (k > 0), (k < n)
    low = np.where(inside[0], special.betaincinv(np.where(inside[0], k, 1), n - k + 1, tail), 0.0)
    high = np.where(inside[1], special.betaincinv(k + 1, np.where(inside[1], n - k, 1), 1 - tail), 1.0)
    return low, high


def mcnemar(b: npt.ArrayLike, c: npt.ArrayLike) -> Numbers:
    """The exact two-sided p of b against c discordant pairs, elementwise: the smaller tail twice (McNemar 1947)."""
    b, c = np.asarray(b), np.asarray(c)
    p: Numbers = np.minimum(1.0, 2 * special.bdtr(np.minimum(b, c), b + c, 0.5))
    return p


def paired_difference(
    b: npt.ArrayLike, c: npt.ArrayLike, n: npt.ArrayLike, level: float = 0.95
) -> tuple[Numbers, Numbers, Numbers]:
    """(b - c) / n over n paired examples and an interval that holds the true difference at least as often as `level`.

    It is d (2q - 1), where d is the share of discordant pairs and q that of b among them. The exact interval of q takes
    0.8 of the allowed error and that of d 0.2, so the extremes of their product err no more often than both together.
    """
    b, c, n = (np.asarray(value, dtype=float) for value in (b, c, n))
    q = np.stack(clopper_pearson(b, b + c, 1 - 0.8 * (1 - level)))
    d = np.stack(clopper_pearson(b + c, n, 1 - 0.2 * (1 - level)))
    ends = (2 * q - 1)[:, None] * d[None, :]
    return (b - c) / n, ends.min(axis=(0, 1)), ends.max(axis=(0, 1))


def seeds_difference(a: Seeds, b: Seeds, grain: float, level: float = 0.95) -> SeedsTest:
    """Do two ways of training differ? Welch's t (1947) over their seeds; one-sample t where a side is a float.

    Degrees of freedom are the smaller side's seeds less one, which is never liberal (Mickey & Brown 1966). Welch's own
    degrees are: of 3 seeds against 5 with unequal variances, 2.3 times the promised 1 % are false alarms.
    """
    (mean_a, variance_a, count_a), (mean_b, variance_b, count_b) = _summary(a), _summary(b)
    difference = mean_a - mean_b
    if min(count_a, count_b) < 2 or math.isinf(min(count_a, count_b)):
        return SeedsTest(difference)
    error, degrees = _error([variance_a, variance_b], [count_a, count_b], grain)
    reach = float(error * special.stdtrit(degrees, (1 + level) / 2))
    return SeedsTest(difference, difference - reach, difference + reach, float(_two_sided(difference / error, degrees)))


def welch_matrix(
    means: npt.ArrayLike, variances: npt.ArrayLike, counts: npt.ArrayLike, grain: npt.ArrayLike
) -> Numbers:
    """The p-values of seeds_difference, of each against each, (...,N) to (...,N,N).

    NaN where a side has one seed, or both are fixed. variances: over seeds, with count - 1 below the line. counts:
    infinite for fixed weights. grain: one, or one a side.
    """
    means, counts = np.asarray(means, dtype=float), np.asarray(counts, dtype=float)
    squares = np.maximum(np.asarray(variances, dtype=float), np.square(grain)) / counts
    smaller = np.minimum(counts[..., :, None], counts[..., None, :])
    degrees = np.where((smaller < 2) | np.isinf(smaller), np.nan, smaller - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (means[..., :, None] - means[..., None, :]) / np.sqrt(squares[..., :, None] + squares[..., None, :])
    return _two_sided(t, degrees)


def benjamini_hochberg(p: npt.ArrayLike) -> Numbers:
    """Adjusted p-values: those <= alpha have at most a share alpha of false discoveries (Benjamini & Hochberg 1995).

    NaN stays NaN, and is no test.
    """

    def steps(sorted_p: Numbers) -> Numbers:
        scaled = sorted_p * (len(sorted_p) / np.arange(1, len(sorted_p) + 1))
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p, steps)


def holm(p: npt.ArrayLike) -> Numbers:
    """Adjusted p-values: one false alarm or more among those <= alpha has a chance of at most alpha (Holm 1979).

    NaN stays NaN, and is no test.
    """
    return _adjusted(p, lambda sorted_p: np.maximum.accumulate(sorted_p * np.arange(len(sorted_p), 0, -1)))


def prediction(baseline: npt.ArrayLike, m: int, level: float, grain: float) -> tuple[Numbers, Numbers]:
    """The interval for the mean of m new seeds, given the baseline's (...,k): its mean +- t s sqrt(1/k + 1/m)."""
    old = np.asarray(baseline, dtype=float)
    reach = _prediction_error(old, m, grain) * special.stdtrit(old.shape[-1] - 1, (1 + level) / 2)
    return old.mean(axis=-1) - reach, old.mean(axis=-1) + reach


def prediction_p(baseline: npt.ArrayLike, new: npt.ArrayLike, grain: float) -> Numbers:
    """The p-value of new seeds (...,m), given the baseline's (...,k): `prediction` leaves their mean out at 1 - p."""
    old, fresh = np.asarray(baseline, dtype=float), np.asarray(new, dtype=float)
    t = (fresh.mean(axis=-1) - old.mean(axis=-1)) / _prediction_error(old, fresh.shape[-1], grain)
    return _two_sided(t, old.shape[-1] - 1)


def examples_needed(b: int, c: int, n: int, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Paired examples that the exact McNemar test needs, were the difference what it seems; None where there is none.

    Connor (1987), and 2 / |difference| more, since the exact test has less power than its normal approximation.
    """
    if b == c:
        return None
    discordant, difference = (b + c) / n, abs(b - c) / n
    z_alpha, z_power = special.ndtri(1 - alpha / 2), special.ndtri(power)
    root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
    return math.ceil((root / difference) ** 2 + 2 / difference)


def seeds_needed(a: Seeds, b: Seeds, grain: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Seeds a side that seeds_difference needs, were means and variances what they seem (power by noncentral t).

    None where the means are equal, a side has a single seed, or a million would not do.
    """
    (mean_a, variance_a, count_a), (mean_b, variance_b, count_b) = _summary(a), _summary(b)
    if mean_a == mean_b or min(count_a, count_b) < 2 or math.isinf(min(count_a, count_b)):
        return None

    def reached(seeds: int) -> bool:
        counts = [seeds if math.isfinite(count) else count for count in (count_a, count_b)]
        error, degrees = _error([variance_a, variance_b], counts, grain)
        threshold = special.stdtrit(degrees, 1 - alpha / 2)
        return bool(special.nctdtr(degrees, abs(mean_a - mean_b) / error, threshold) <= 1 - power)

    least = 2 + bisect_left(range(2, LARGEST), True, key=reached)
    return least if least < LARGEST else None


def _summary(seeds: Seeds) -> tuple[float, float, float]:
    """Mean, variance and count; a fixed value counts as infinitely many equal seeds."""
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
    """Adjust what is not NaN, in increasing order, and put it back where it was."""
    values = np.asarray(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    adjusted = np.full_like(values, np.nan)
    adjusted[order] = np.minimum(1.0, steps(values[order]))
    return adjusted
