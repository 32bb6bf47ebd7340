"""What the page compares are the tests of `bench compare` and the ranks of the board."""

import base64

import numpy as np
import pytest

from leaderboard import board_comparisons
from leaderboard.board_comparisons import comparisons
from leaderboard.build_board import ranked_board
from leaderboard.pairwise_comparison import compare, read_side
from tests.publish.published import flags, publish, table_of


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def compared(results):
    ranked = ranked_board(results, "digits")
    return comparisons("digits", ranked.entries, ranked.ranks, ranked.order), ranked


def decoded(text, n):
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:n].astype(bool)


def test_pairs_are_those_of_bench_compare_in_the_order_of_the_board(results):
    for name, hits in (("weak", (20, 24, 22)), ("strong", (80, 84, 82)), ("like-strong", (79, 84, 81))):
        publish(results, name, [table_of(flags(100, each), certified=flags(100, 5)) for each in hits])
    found, _ = compared(results)
    assert [each.name for each in found.outcomes] == ["strong", "like-strong", "weak"]
    assert [(pair.a, pair.b) for pair in found.pairs[::3]] == [(0, 1), (0, 2), (1, 2)]
    folder = results.parent / "runs"
    for pair in found.pairs:
        sides = [read_side(folder / found.outcomes[i].name) for i in (pair.a, pair.b)]
        (same,) = [each for each in compare(*sides) if each.metric == pair.metric]
        assert (pair.n, pair.test, pair.needed) == (same.n, same.test, same.needed)
        for key in ("difference", "low", "high", "p"):
            assert getattr(pair, key) == pytest.approx(getattr(same, key), rel=1e-3), key


def test_only_the_first_entries_of_a_board_are_compared(results, monkeypatch):
    monkeypatch.setattr(board_comparisons, "MOST", 2)
    for name, hits in (("weak", 20), ("strong", 80), ("middle", 50)):
        publish(results, name, [table_of(flags(100, hits))])
    found, _ = compared(results)
    assert [each.name for each in found.outcomes] == ["strong", "middle"]
    assert {(pair.a, pair.b) for pair in found.pairs} == {(0, 1)}


def test_claims_are_those_of_the_ranks_for_robust_accuracy_only(results):
    for name, hits in (("weak", (20, 24, 22)), ("strong", (80, 84, 82)), ("like-strong", (79, 84, 81))):
        publish(results, name, [table_of(flags(100, each)) for each in hits])
    found, ranked = compared(results)
    robust = {(pair.a, pair.b): pair for pair in found.pairs if pair.metric == "robust"}
    assert [pair.better for pair in robust.values()] == [0, 1, 1]
    i, j = ranked.order[0], ranked.order[2]
    assert robust[0, 2].adjusted == pytest.approx(ranked.ranks.p[i, j], rel=1e-3)
    assert robust[0, 2].adjusted > robust[0, 2].p
    assert {pair.better for pair in found.pairs if pair.metric == "clean"} == {None}


def test_outcomes_are_of_each_seed_and_each_example(results):
    robust = [flags(10, 3), flags(10, 4, first=5)]
    publish(results, "mine", [table_of(each, certified=flags(10, 1, first=each.argmax())) for each in robust])
    (mine,) = compared(results)[0].outcomes
    assert mine.seeds == (0, 1)
    for seed, each in enumerate(robust):
        np.testing.assert_array_equal(decoded(mine.robust[seed], 10), each)
        np.testing.assert_array_equal(np.flatnonzero(decoded(mine.certified[seed], 10)), [each.argmax()])


def test_several_evaluations_of_fixed_weights_are_one_side(results):
    publish(results, "fixed", [table_of(flags(10, 6)), table_of(flags(10, 6, first=2))], trained=False)
    publish(results, "other", [table_of(flags(10, 1, first=2))], trained=False)
    found, _ = compared(results)
    (robust,) = [pair for pair in found.pairs if pair.metric == "robust"]
    assert (robust.difference, robust.test) == (pytest.approx(0.3), "McNemar, exact")  # 4 of 10 against 1


def test_what_is_not_comparable_says_why(results):
    publish(results, "seeds", [table_of(flags(10, 6)), table_of(flags(10, 7))])
    publish(results, "seed", [table_of(flags(10, 5))])
    found, _ = compared(results)
    assert found.pairs == ()
    ((a, b, reason),) = [(each.a, each.b, each.reason) for each in found.untested]
    assert (a, b) == (0, 1)
    assert "single seed" in reason
