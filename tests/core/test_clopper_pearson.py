import numpy as np
import pytest
from scipy.stats import binom

from bench.core.clopper_pearson import interval, lower_bound, upper_bound


@pytest.mark.parametrize(("hits", "n"), [(1, 10), (7, 10), (9, 10), (65, 100), (999, 1000)])
def test_bounds_are_where_the_binomial_tail_is_the_error(hits, n):
    assert binom.sf(hits - 1, n, lower_bound(hits, n, 0.05)) == pytest.approx(0.05)
    assert binom.cdf(hits, n, upper_bound(hits, n, 0.05)) == pytest.approx(0.05)


def test_ends():
    assert (float(lower_bound(0, 10, 0.05)), float(upper_bound(10, 10, 0.05))) == (0.0, 1.0)
    assert [float(end) for end in interval(0, 0)] == [0.0, 1.0]


def test_arrays_give_the_same_numbers_as_single_values():
    hits = np.array([0, 1, 2.5, 9, 10])
    low, high = interval(hits, 10, 0.01)
    for k, *ends in zip(hits, low, high, strict=True):
        assert [float(end) for end in interval(k, 10, 0.01)] == ends
        assert ends == [float(lower_bound(k, 10, 0.01)), float(upper_bound(k, 10, 0.01))]


def test_the_default_is_95_percent():
    low, high = interval(np.arange(101), 100)
    shares = np.linspace(0, 1, 21)
    held = (low[:, None] <= shares) & (shares <= high[:, None])
    covered = (held * binom.pmf(np.arange(101)[:, None], 100, shares)).sum(axis=0)
    assert 0.95 <= covered.min() < 0.97
