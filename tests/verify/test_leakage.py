import itertools

import numpy as np
import pytest

from bench.verify.leakage import SIZES, by_batch_position, by_test_order, check_leakage, exact_p

N = 10_000


def labels(n, classes=10, seed=0):
    return np.random.default_rng(seed).integers(0, classes, n)


def draw(rate, seed=0):
    """Errors, each with its own probability."""
    return np.random.default_rng(seed).random(len(rate)) < rate


@pytest.mark.slow
@pytest.mark.parametrize(("touched", "elsewhere"), [(0.0006, 0.0128), (0.2520, 0.3254), (0.2096, 0.3216)])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_published_leaks_are_caught(touched, elsewhere, seed):
    """Half of the positions of test batches of 100, at the published error rates."""
    half = np.arange(N) % 100 < 50
    found = by_batch_position(draw(np.where(half, touched, elsewhere), seed), labels(N))
    assert found.p < 1e-4
    assert found.size == 100
    lower, higher = sorted([found.inside, found.outside])
    assert lower < (touched + elsewhere) / 2 < higher


def test_a_run_in_the_middle_of_the_batch_is_found_where_it_is():
    found = by_batch_position(draw(np.where(np.arange(N) % 250 // 25 == 4, 0.0, 0.3)), labels(N))
    assert (found.size, found.first, found.last) == (250, 100, 125)
    assert found.inside == 0


@pytest.mark.slow
def test_an_unusual_batch_size_is_found_when_it_is_named():
    errors = draw(np.where(np.arange(N) % 37 < 18, 0.0, 0.02))
    assert by_batch_position(errors, labels(N)).p > 0.01
    assert by_batch_position(errors, labels(N), (*SIZES, 37)).p < 1e-6


@pytest.mark.slow
def test_classes_in_turn_and_of_different_difficulty_are_no_leak():
    in_turn = np.arange(N) % 10
    errors = draw(in_turn / 30)
    assert by_batch_position(errors, in_turn).p > 0.05
    assert by_batch_position(errors, np.zeros(N, np.int64)).p < 1e-10  # what the classes explain


def test_a_leak_is_found_beside_a_larger_difference_of_classes():
    """The second half of each batch is a harder class; part of it was leaked."""
    position = np.arange(N) % 100
    label = (position >= 50).astype(np.int64)
    errors = draw(np.select([(position >= 60) & (position < 80), label == 1], [0.3, 0.4], 0.02))
    found = by_batch_position(errors, label, (100,))
    assert abs(found.first - 60) <= 1
    assert abs(found.last - 80) <= 1
    assert found.p < 1e-4


@pytest.mark.slow
def test_a_trend_along_the_test_order_is_no_leak_by_batch_and_shows_by_order():
    errors = draw(np.where(np.arange(N) < N // 2, 0.02, 0.007))
    assert by_batch_position(errors, labels(N)).p > 0.05
    found = by_test_order(errors, labels(N))
    assert found.p < 1e-4
    assert min(abs(found.first - 32), abs(found.last - 32)) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("n", "rate"), [(1000, 0.05), (360, 0.03), (60, 0.3)])
def test_false_alarms_are_as_rare_as_promised(n, rate):
    rng = np.random.default_rng(1)
    errors, label = rng.random(n) < rate, labels(n)
    ps = np.array([[s.p for s in (by_batch_position(w, label), by_test_order(w, label))]
                   for w in (rng.permutation(errors) for _ in range(150))])  # fmt: skip
    assert ((ps < 0.05).mean(axis=0) <= 0.05 + 0.04).all()  # the promise, and two standard errors of 150 draws
    assert ((ps < 0.01).mean(axis=0) <= 0.01 + 0.02).all()


def test_the_evidence_names_the_positions():
    errors = np.arange(400) % 2 == 0
    in_batch, in_order = check_leakage({"clean": ~errors, "label": labels(400)}, 100)
    assert in_batch.evidence.startswith("error rate 0 % at odd positions of a batch, 100 % at even ones, p = ")
    errors = np.arange(2000) % 50 // 10 == 3
    in_batch, _ = check_leakage({"clean": ~errors, "label": labels(2000)}, 100)
    expected = "error rate 100 % at positions 30 to 39 of each batch of 50, 0 % at the other positions"
    assert in_batch.evidence.startswith(expected)
    assert " of the test order, " in in_order.evidence


def test_p_is_corrected_for_the_number_of_batch_sizes():
    errors, label = draw(np.where(np.arange(400) % 4 < 2, 0.05, 0.2)), labels(400)
    alone = [by_batch_position(errors, label, (size,)).p for size in (2, 4, 8)]
    assert min(alone) < 0.2
    assert by_batch_position(errors, label, (2, 4, 8)).p == pytest.approx(3 * min(alone))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40, 360])
@pytest.mark.parametrize("pattern", ["none", "all", "one"])
def test_small_tables_neither_crash_nor_alarm(n, pattern):
    errors = np.full(n, pattern == "all")
    errors[0] |= pattern == "one"
    found = [by_batch_position(errors, labels(n)), by_test_order(errors, labels(n))]
    assert all(scan.p == 1 for scan in found if scan is not None)
    assert (found[0] is None) == (n < 16)


def test_the_exact_p_counts_every_way_in_which_the_errors_could_lie():
    label = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    inside = np.array([1, 1, 0, 0, 0, 1, 1, 1, 0], bool)
    errors = np.array([0, 0, 1, 1, 0, 1, 0, 0, 0], bool)
    ways = [
        set(a) | set(b) for a in itertools.combinations(range(5), 2) for b in itertools.combinations(range(5, 9), 1)
    ]
    counts = np.array([len(way & set(np.flatnonzero(inside))) for way in ways])
    seen = (errors & inside).sum()
    assert exact_p(errors, label, inside) == pytest.approx(2 * min((counts <= seen).mean(), (counts >= seen).mean()))
