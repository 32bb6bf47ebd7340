"""The formulas against statsmodels, and what they promise by simulation: 10,000 draws, with three standard errors of
those draws (about 0.65 points at 5 %) allowed for."""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.stats

from bench.core import clopper_pearson
from leaderboard.significance import (
    MeanDifference,
    benjamini_hochberg,
    examples_needed,
    holm,
    mcnemar,
    paired_difference,
    prediction,
    prediction_p,
    recipe_interval,
    seeds_difference,
    seeds_needed,
    welch_matrix,
)
from tests.leaderboard.recipe_simulation import Cell, simulate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint
    from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

DRAWS = 10_000
TINY = 1e-12  # a grain that raises no variance
ALPHAS = (0.05, 0.01)


def close(ours, theirs):
    return np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=0)


def at_most(rate, promised):
    assert rate <= promised + 3 * math.sqrt(promised * (1 - promised) / DRAWS), (rate, promised)


def rng():
    return np.random.default_rng(20240705)


# --- the same numbers as statsmodels


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99, 1 - 1e-6])
def test_clopper_pearson_is_that_of_statsmodels(level):
    n = np.concatenate([rng().integers(1, 20_000, 300), [1, 1, 7, 7, 10**6, 10**6, 10**6]])
    hits = np.concatenate([rng().integers(0, n[:300] + 1), [0, 1, 0, 7, 0, 1, 10**6]])
    close(
        clopper_pearson.interval(hits, n, (1 - level) / 2), proportion_confint(hits, n, alpha=1 - level, method="beta")
    )


def test_mcnemar_is_that_of_statsmodels():
    draw = rng()
    size = 10 ** draw.uniform(0, 4, 400)
    b, c = (np.concatenate([draw.integers(0, size + 1), end]) for end in ([0, 1, 0, 9, 0, 500], [0, 0, 9, 0, 900, 520]))
    theirs = [their_mcnemar([[0, i], [j, 0]], exact=True).pvalue for i, j in zip(b, c, strict=True)]
    np.testing.assert_allclose(mcnemar(b, c), theirs, rtol=1e-8, atol=1e-290)  # theirs are 0 a little sooner


def test_mcnemar_in_closed_form():
    assert mcnemar([0, 5, 0, 1], [0, 5, 6, 0]).tolist() == [1, 1, 2 / 64, 1]


@pytest.mark.slow
@pytest.mark.parametrize("many", [1, 2, 5, 60])
def test_adjustments_are_those_of_statsmodels(many):
    for power in (1, 6):
        p = rng().random(many) ** power
        p[many // 2 :] = p[: many - many // 2]  # ties
        close(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
        close(holm(p), multipletests(p, method="holm")[1])


@pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
def test_nan_is_no_test(adjust):
    p = np.array([0.01, np.nan, 0.2, 0.03, np.nan])
    kept = adjust(p)
    assert np.isnan(kept[[1, 4]]).all()
    close(kept[[0, 2, 3]], adjust(p[[0, 2, 3]]))
    assert adjust(np.array([])).size == 0
    assert np.isnan(adjust([np.nan])).all()


def test_seeds_difference_has_the_t_of_statsmodels_and_the_degrees_of_the_smaller_side():
    draw = rng()
    for k, m in itertools.product((2, 3, 5, 9), repeat=2):
        a, b = draw.normal(0.9, 0.01, k), draw.normal(0.9, 0.05, m)
        t = CompareMeans(DescrStatsW(a), DescrStatsW(b)).ttest_ind(usevar="unequal")[0]
        ours = seeds_difference(a, b, TINY)
        close(ours.p, 2 * scipy.stats.t.sf(abs(t), min(k, m) - 1))
        close(ours.difference, a.mean() - b.mean())
        edge = seeds_difference(a, b, TINY, level=1 - ours.p)  # the interval that ends at 0
        assert min(abs(edge.low), abs(edge.high)) < 1e-9 * abs(ours.difference)


def test_seeds_against_fixed_weights_is_the_test_of_one_sample():
    for k in (2, 3, 8):
        a = rng().normal(0.9, 0.01, k)
        theirs = DescrStatsW(a).ttest_mean(0.897)[1]
        close([seeds_difference(a, 0.897, TINY).p, seeds_difference(0.897, a, TINY).p], theirs)
        ours = seeds_difference(a, 0.0, TINY)
        close([ours.low, ours.high], np.minimum(DescrStatsW(a).tconfint_mean(), 1.0))


def test_one_seed_claims_nothing():
    some = [0.9, 0.91, 0.92]
    assert seeds_difference([0.875], [0.75], 0.01) == MeanDifference(0.125, None, None, None)
    assert seeds_difference(some, [0.5], 0.01).p is None
    assert seeds_difference([0.5], 0.25, 0.01).p is None
    assert seeds_difference(0.5, 0.25, 0.01) == MeanDifference(0.25, None, None, None)


def test_equal_seeds_are_not_certainty():
    """All seeds of a are one example better: with a standard deviation of 0 that would be p = 0."""
    apart = seeds_difference([351 / 360] * 3, [350 / 360] * 3, 1 / 360)
    close(apart.p, 2 * scipy.stats.t.sf(1 / math.sqrt(2 / 3), 2))
    assert seeds_difference([0.5] * 3, [0.5] * 3, 1 / 360).p == 1
    assert prediction_p([0.5] * 5, [0.5 + 1 / 360] * 3, 1 / 360) > 0.1


def test_welch_matrix_is_seeds_difference_of_every_pair():
    draw = rng()
    seeds = [draw.normal(0.8, 0.02, k) for k in (3, 5, 2, 8)] + [np.full(3, 0.8), np.array([0.7])]
    sides = [*seeds, 0.81, 0.75]
    means = [np.mean(side) for side in sides]
    variances = [np.var(s, ddof=1) if len(s) > 1 else np.nan for s in seeds] + [0, 0]
    counts = [len(s) for s in seeds] + [math.inf, math.inf]
    ours = welch_matrix(means, variances, counts, 1 / 360)
    pairs = [[seeds_difference(a, b, 1 / 360).p for b in sides] for a in sides]
    close(ours, np.array(pairs, dtype=float))
    assert np.isnan(ours[5]).all()
    assert np.isnan(ours[6, 7])
    close(welch_matrix(means, variances, counts, np.full(8, 1 / 360)), ours)


def test_prediction_and_its_p_value_say_the_same():
    baseline, new = rng().normal(0.9, 0.01, 8), [0.93, 0.94, 0.92]
    p = prediction_p(baseline, new, TINY)
    s = DescrStatsW(baseline).std_mean * math.sqrt(8) * math.sqrt(1 / 8 + 1 / 3)
    close(p, 2 * scipy.stats.t.sf(abs(0.93 - baseline.mean()) / s, 7))
    low, high = prediction(baseline, 3, 1 - p, TINY)
    close([low, high], [2 * baseline.mean() - 0.93, 0.93])


def test_paired_difference_in_closed_form():
    difference, low, high = paired_difference([0, 30, 12, 7], [0, 10, 12, 0], [50, 100, 100, 7])
    close(difference, [0, 0.2, 0, 1])
    close(high[0], 1 - 0.005 ** (1 / 50))  # no discordant pair of 50: d is at most that, q anything
    assert low[0] == -high[0]
    assert low[2] == pytest.approx(-high[2])
    q, d = clopper_pearson.interval(30, 40, 0.02), clopper_pearson.interval(40, 100, 0.005)
    close([low[1], high[1]], [(2 * q[0] - 1) * d[0], (2 * q[1] - 1) * d[1]])
    assert high[3] == 1


# --- what they promise


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 360, 10_000])
def test_paired_difference_covers(n):
    for d, q in itertools.product((0.002, 0.05, 0.3, 1.0), (0.5, 0.6, 0.95, 1.0)):
        draw = rng()
        discordant = draw.binomial(n, d, DRAWS)
        b = draw.binomial(discordant, q)
        _, low, high = paired_difference(b, discordant - b, n)
        true = d * (2 * q - 1)
        at_most(np.mean((true < low - 1e-12) | (true > high + 1e-12)), 0.05)


def test_mcnemar_false_alarms():
    for n, d in itertools.product((20, 360, 10_000), (0.001, 0.02, 0.3)):
        draw = rng()
        discordant = draw.binomial(n, d, DRAWS)
        b = draw.binomial(discordant, 0.5)
        for alpha in ALPHAS:
            at_most(np.mean(mcnemar(b, discordant - b) <= alpha), alpha)


def trained(draw, n, shares, seeds):
    """Accuracies (DRAWS, seeds) of networks that are right on each of n examples by a chance of its own.

    shares: (chance, of how many examples); the rest are always right.
    """
    wrong = sum(draw.binomial(many, 1 - chance, (DRAWS, seeds)) for chance, many in shares)
    return 1 - wrong / n


def ways(n):
    """Ways of training with the same mean: by how many examples are wrong, and for whom chance decides."""
    return {
        1: {"nobody": [(0, 1)], "coins": [(0.5, 2)], "anybody": [(1 - 1 / n, n)]},
        2: {"nobody": [(0, 2)], "coins": [(0.5, 4)], "rare": [(0.9, 20)], "anybody": [(1 - 2 / n, n)]},
        20: {"nobody": [(0, 20)], "few": [(0, 18), (0.5, 4)], "coins": [(0.5, 40)], "anybody": [(1 - 20 / n, n)]},
    }


def welch(a, b, grain):
    """seeds_difference of every row of a and that of b, by welch_matrix."""
    sides = [(side.mean(axis=1), side.var(axis=1, ddof=1), np.full(len(side), float(side.shape[1]))) for side in (a, b)]
    return welch_matrix(*(np.stack(pair, axis=-1) for pair in zip(*sides, strict=True)), grain)[:, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [360, 10_000])
@pytest.mark.parametrize(("k", "m"), [(3, 3), (3, 5), (5, 5)])
def test_seeds_difference_false_alarms(n, k, m):
    for equal in ways(n).values():
        draw = rng()
        left, right = ([trained(draw, n, shares, size) for shares in equal.values()] for size in (k, m))
        for a, b in itertools.product(left, right):
            p = welch(a, b, 1 / n)
            for alpha in ALPHAS:
                at_most(np.mean(p <= alpha), alpha)


@pytest.mark.parametrize(("k", "m"), [(3, 3), (3, 5), (5, 3), (8, 3)])
@pytest.mark.parametrize("wider", [1, 2, 5, 30])
def test_seeds_difference_false_alarms_with_unequal_variances(k, m, wider):
    draw = rng()
    p = welch(draw.normal(0.8, 0.01, (DRAWS, k)), draw.normal(0.8, 0.01 * wider, (DRAWS, m)), 1e-4)
    for alpha in (*ALPHAS, 0.001):
        at_most(np.mean(p <= alpha), alpha)


@pytest.mark.slow
def test_seeds_difference_covers():
    draw = rng()
    a, b = (trained(draw, 360, shares, 3) for shares in ([(0.5, 40)], [(0.5, 60)]))
    found = [seeds_difference(*pair, 1 / 360) for pair in zip(a, b, strict=True)]
    at_most(np.mean([not each.low <= 10 / 360 <= each.high for each in found]), 0.05)


@pytest.mark.parametrize("k", [3, 5])
def test_seeds_against_fixed_weights_false_alarms(k):
    for wrong, equal in ways(360).items():
        for shares in equal.values():
            a = trained(rng(), 360, shares, k)
            fixed = np.full(DRAWS, 1 - wrong / 360)
            means, variances = np.stack([a.mean(axis=1), fixed], -1), np.stack([a.var(axis=1, ddof=1), 0 * fixed], -1)
            p = welch_matrix(means, variances, np.array([k, np.inf]), 1 / 360)[:, 0, 1]
            for alpha in ALPHAS:
                at_most(np.mean(p <= alpha), alpha)


@pytest.mark.parametrize("n", [360, 10_000])
@pytest.mark.parametrize("k", [5, 8])
def test_prediction_false_alarms(n, k):
    for equal in ways(n).values():
        for shares in equal.values():
            draw = rng()
            p = prediction_p(trained(draw, n, shares, k), trained(draw, n, shares, 3), 1 / n)
            for alpha in ALPHAS:
                at_most(np.mean(p <= alpha), alpha)


def test_prediction_covers():
    draw = rng()
    for k in (5, 8):
        baseline, new = draw.normal(0.9, 0.02, (DRAWS, k)), draw.normal(0.9, 0.02, (DRAWS, 3)).mean(axis=1)
        low, high = prediction(baseline, 3, 0.95, 1 / 360)
        at_most(np.mean((new < low) | (new > high)), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ALPHAS)
def test_benjamini_hochberg_over_the_pairs_of_equal_entries(alpha):
    """Ten entries that differ by chance alone: at most a share alpha of the boards tells any two apart."""
    draw, pairs = rng(), np.triu_indices(10, 1)
    hits = (draw.random((DRAWS, 10, 100), dtype=np.float32) < 0.8).astype(np.float32)
    b = np.rint(hits @ (1 - hits).transpose(0, 2, 1)).astype(np.int64)  # of each pair, who is right alone
    p = mcnemar(b, b.transpose(0, 2, 1))[:, *pairs]
    at_most(np.mean([(benjamini_hochberg(board) <= alpha).any() for board in p]), alpha)
    seeds = draw.binomial(40, 0.5, (DRAWS, 10, 3)) / 360
    p = welch_matrix(seeds.mean(-1), seeds.var(-1, ddof=1), np.full(10, 3.0), 1 / 360)[:, *pairs]
    at_most(np.mean([(benjamini_hochberg(board) <= alpha).any() for board in p]), alpha)


# --- what would be needed


@pytest.mark.parametrize(("b", "c", "n"), [(10, 5, 360), (10, 0, 360), (3, 1, 10_000), (200, 50, 1000), (360, 0, 360)])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_examples_needed_give_the_power_and_not_much_more(b, c, n, power):
    needed = examples_needed(b, c, n, power)

    def reached(examples):
        draw = rng()
        discordant = draw.binomial(examples, (b + c) / n, DRAWS)
        ours = draw.binomial(discordant, b / (b + c))
        return np.mean(mcnemar(ours, discordant - ours) <= 0.05)

    assert reached(needed) > power - 0.01
    assert reached(needed * 7 // 10) < power


def test_examples_needed_where_there_is_no_difference():
    assert examples_needed(4, 4, 100) is None
    assert examples_needed(0, 0, 100) is None
    assert examples_needed(5, 9, 100) == examples_needed(9, 5, 100)


def test_seeds_needed_give_the_power():
    draw = rng()
    shape = np.array([-1, 0, 1])
    for gap in (0.01, 0.02, 0.05):
        needed = seeds_needed(0.9 + 0.01 * shape, 0.9 + gap + 0.02 * shape, TINY)
        rates = [
            np.mean(welch(draw.normal(0.9, 0.01, (DRAWS, k)), draw.normal(0.9 + gap, 0.02, (DRAWS, k)), TINY) <= 0.05)
            for k in (needed, needed - 1)
        ]
        assert rates[1] - 0.02 < 0.8 < rates[0] + 0.02


def test_seeds_needed_against_fixed_weights():
    seeds = [0.89, 0.9, 0.91]
    needed = seeds_needed(seeds, 0.92, TINY)
    draw = rng().normal(0.9, 0.01, (DRAWS, needed))
    p = [seeds_difference(row, 0.92, TINY).p for row in draw]
    assert 0.78 < np.mean(np.array(p) <= 0.05) < 0.95
    assert seeds_needed(0.92, seeds, TINY) == needed


@pytest.mark.parametrize(("a", "b"), [([0.9], [0.8, 0.81]), ([0.8, 0.8], [0.8, 0.8]), (0.9, 0.8), (0.9, [0.8])])
def test_seeds_needed_where_nothing_can_be_said(a, b):
    assert seeds_needed(a, b, 1 / 360) is None


def test_seeds_needed_never_ask_for_a_million():
    assert seeds_needed([0.5, 0.6, 0.7], [0.5, 0.6, 0.7 + 1e-5], 1 / 360) is None


def test_the_interval_of_a_recipe_combines_seeds_and_examples_in_quadrature():
    low, high = recipe_interval([0.6, 0.64, 0.68], 100)
    seeds = scipy.stats.t.ppf(0.975, 2) * 0.04 / math.sqrt(3)
    below, above = clopper_pearson.interval(64, 100)
    assert float(low) == pytest.approx(0.64 - math.hypot(0.64 - below, seeds))
    assert float(high) == pytest.approx(0.64 + math.hypot(above - 0.64, seeds))
    same = [float(end) for end in recipe_interval([0.5, 0.5], 100)]
    assert same == pytest.approx([float(end) for end in clopper_pearson.interval(50, 100)])
    assert [float(end) for end in recipe_interval([0.0, 1.0], 10)] == [0.0, 1.0]


@pytest.mark.parametrize(
    "cell", [Cell(0.65, 0.06, 10, 1000, 0.0), Cell(0.65, 0.06, 3, 360, 0.9), Cell(0.9, 0.02, 3, 1000, 0.9)], ids=str
)
def test_the_interval_of_a_recipe_covers_where_that_of_the_examples_does_not(cell):
    coverage, _, of_examples, _ = simulate(cell, 4000, np.random.default_rng(1))
    assert coverage >= 0.94
    assert of_examples < 0.93


def test_seeds_that_share_their_examples_share_their_error():
    """Without a spread of the seeds, an interval that divides the examples' error by the seeds would cover half."""
    coverage, _, of_examples, _ = simulate(Cell(0.65, 0.0, 10, 360, 0.9), 4000, np.random.default_rng(1))
    assert min(coverage, of_examples) >= 0.94
