"""A rank is claimed only where a test tells two entries apart."""

from dataclasses import replace

import numpy as np
import pytest

from bench.core.errors import UserError
from leaderboard.published_results import About, Entry, EvaluatedRun
from leaderboard.ranks import ALPHA, rank
from leaderboard.significance import benjamini_hochberg, mcnemar, seeds_difference
from leaderboard.verification_files import Reproduction
from tests.publish.published import flags, record_of, table_of

AGAIN = Reproduction(by="the tests", seeds=[7, 8, 9], finished="2026-11-20")


def entry(name, runs, *, trained=True, **changes):
    """An entry of flags: one array a seed, of who is robust."""
    made = []
    for seed, robust in enumerate(runs):
        settings = {"seed": seed} | ({} if trained else {"training": None}) | changes
        record = record_of(table_of(robust), **settings)
        made.append(EvaluatedRun(None, record, np.ones_like(robust), robust, np.zeros_like(robust), {}))
    about = About(title=name, paper="", licence="")
    return Entry("digits", name, about, tuple(made), reproduced=AGAIN if trained else None)


def weights(name, robust, **changes):
    return entry(name, [robust], trained=False, **changes)


def shuffled(n, share, rng):
    return rng.uniform(size=n) < share


def test_networks_are_told_apart_by_mcnemar():
    rng = np.random.default_rng(0)
    hits = [shuffled(400, share, rng) for share in (0.5, 0.52, 0.7)]
    found = rank([weights(str(i), each) for i, each in enumerate(hits)])
    pairs = [(0, 1), (0, 2), (1, 2)]
    p = [float(mcnemar((hits[i] & ~hits[j]).sum(), (hits[j] & ~hits[i]).sum())) for i, j in pairs]
    for (i, j), adjusted in zip(pairs, benjamini_hochberg(p), strict=True):
        assert found.p[i, j] == found.p[j, i] == pytest.approx(adjusted, rel=1e-12)
    assert found.better.tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    assert found.low.tolist() == [2, 2, 1]
    assert found.high.tolist() == [3, 3, 1]


def test_recipes_are_told_apart_by_their_seeds():
    a = entry("a", [flags(100, hits) for hits in (80, 81, 82)])
    b = entry("b", [flags(100, hits) for hits in (50, 52, 51)])
    found = rank([a, b])
    wanted = seeds_difference(np.array([0.8, 0.81, 0.82]), np.array([0.5, 0.52, 0.51]), 0.01).p
    assert found.p[0, 1] == pytest.approx(wanted, rel=1e-9)
    assert found.better.tolist() == [[False, True], [False, False]]


def test_a_recipe_is_compared_with_fixed_weights_over_its_seeds_alone():
    a = entry("a", [flags(100, hits) for hits in (80, 82, 84)])
    found = rank([a, weights("b", flags(100, 50))])
    assert found.p[0, 1] == pytest.approx(seeds_difference(np.array([0.8, 0.82, 0.84]), 0.5, 0.01).p, rel=1e-9)
    assert found.better[0, 1]


def test_fixed_weights_lower_no_recipe():
    """They may have memorised all images, those of the test set included."""
    a, b = (entry(name, [flags(100, hits + k) for k in range(3)]) for name, hits in (("a", 80), ("b", 50)))
    memoriser, poor = weights("memoriser", flags(100, 100)), weights("poor", flags(100, 20))
    found = rank([a, b, memoriser, poor])
    assert found.p[0, 2] < ALPHA  # they are tested all the same
    assert found.low.tolist() == [1, 2, 1, 4]
    assert found.high.tolist() == [1, 2, 1, 4]


def test_many_examples_do_not_replace_seeds():
    """One seed against one seed: McNemar would be sure, and nothing is claimed."""
    found = rank([entry("a", [flags(10_000, 9000)]), entry("b", [flags(10_000, 5000)])])
    assert np.isnan(found.p).all()
    assert not found.better.any()
    assert not found.ranked.any()


def test_several_evaluations_of_fixed_weights_are_one_network_that_stands_where_all_say_so():
    twice = entry("a", [flags(100, 60), flags(100, 60, first=20)], trained=False)
    found = rank([twice, weights("b", flags(100, 40, first=20))])
    assert found.p[0, 1] == 1.0


@pytest.mark.parametrize("verdict", ["unreliable", "unchecked"])
def test_an_unreliable_evaluation_has_no_rank(verdict):
    from bench.core.records import Sanity

    found = rank([weights("a", flags(100, 90), sanity=Sanity(verdict, ["x"])), weights("b", flags(100, 10))])
    assert found.ranked.tolist() == [False, True]
    assert (found.low[1], found.high[1]) == (1, 1)


def test_a_pair_is_compared_on_the_examples_that_both_have():
    long, short = flags(1000, 100), flags(200, 160)
    found = rank([weights("a", long), weights("b", short), weights("c", flags(1000, 100, first=900))])
    p = [float(mcnemar(b, c)) for b, c in ((0, 60), (100, 100), (160, 0))]
    adjusted = benjamini_hochberg(p)
    assert [found.p[0, 1], found.p[0, 2], found.p[1, 2]] == pytest.approx(adjusted, rel=1e-9)


def test_other_data_cannot_be_ranked_together():
    a = weights("a", flags(10, 5))
    b = weights("b", flags(10, 5), provenance={"data_hash": "other"})
    with pytest.raises(UserError, match="a and b were evaluated on different data"):
        rank([a, b])


def test_equal_entries_get_all_ranks():
    found = rank([weights(str(i), flags(50, 30)) for i in range(4)])
    assert found.low.tolist() == [1] * 4
    assert found.high.tolist() == [4] * 4


def test_no_entries_and_one_entry():
    assert rank([]).low.tolist() == []
    alone = rank([weights("a", flags(10, 5))])
    assert (alone.low.tolist(), alone.high.tolist()) == ([1], [1])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [0, 3])
def test_equal_entries_are_hardly_ever_told_apart(seeds):
    """Share of boards of equal entries on which any pair is told apart: at most ALPHA, but for Monte Carlo's error.

    seeds: of each recipe; 0 for fixed weights. Each seed is right on an example with the example's own probability.
    """
    rng, boards, n = np.random.default_rng(1), 1000, 200
    alarms = 0
    for _ in range(boards):
        hard = rng.beta(2, 1, n)
        if seeds:
            made = [entry(str(i), list(rng.uniform(size=(seeds, n)) < hard)) for i in range(6)]
        else:
            made = [weights(str(i), rng.uniform(size=n) < hard) for i in range(6)]
        alarms += bool(rank(made).better.any())
    assert alarms / boards <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / boards)


def test_a_recipe_that_nobody_else_has_trained_has_no_rank():
    """Its authors alone know what its weights were trained on."""
    a = entry("a", [flags(100, hits) for hits in (80, 81, 82)])
    found = rank([a, replace(entry("b", [flags(100, 99)] * 3), reproduced=None)])
    assert found.ranked.tolist() == [True, False]
    assert found.low[0] == 1
