"""Exact (Clopper-Pearson) confidence bounds on a probability, elementwise on arrays. Imports no torch."""

import numpy as np
import numpy.typing as npt

Bounds = npt.NDArray[np.float64]


def lower_bound(hits: npt.ArrayLike, n: npt.ArrayLike, error: float) -> Bounds:
    """The one-sided lower bound on the probability of a hit, given `hits` in `n` trials.

    It is too high with probability at most `error`. hits: 0 to n, not necessarily an integer (a mean over seeds).
    """
    from scipy.special import betaincinv  # here, because the import takes a tenth of a second

    hits, n = np.asarray(hits), np.asarray(n)
    positive = hits > 0
    bound: Bounds = np.where(positive, betaincinv(np.where(positive, hits, 1), n - hits + 1, error), 0.0)
    return bound


def upper_bound(hits: npt.ArrayLike, n: npt.ArrayLike, error: float) -> Bounds:
    """The one-sided upper bound, which is too low with probability at most `error`."""
    from scipy.special import betaincinv

    hits, n = np.asarray(hits), np.asarray(n)
    below_all = hits < n
    bound: Bounds = np.where(below_all, betaincinv(hits + 1, np.where(below_all, n - hits, 1), 1 - error), 1.0)
    return bound


def interval(hits: npt.ArrayLike, n: npt.ArrayLike, tail: float = 0.025) -> tuple[Bounds, Bounds]:
    """The two-sided interval (low, high) with an error of at most `tail` on each side: 95 % by default."""
    return lower_bound(hits, n, tail), upper_bound(hits, n, tail)
