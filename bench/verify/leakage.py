"""Detects training on the test set, from error rates by position in the test batch and in the test order.

A training loop that lets the test set influence the weights between two epochs sees the same positions of each test
batch every time, and the model has a lower error rate at these positions. This is how the PER+at checkpoints of a
published paper were detected: 0.06 % errors at one half of the positions, 1.28 % at the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.example_table import Flags, Table
from bench.verify.report import Finding, Outcome

Counts = npt.NDArray[np.float64]
SIZES = (*(2**k for k in range(1, 11)), 50, 100, 200, 250, 500, 1000)  # common batch sizes
BLOCKS = 64  # of the test order
BATCHES = 8  # minimum number of batches, so that a slow trend along the test order averages out at each position
SUSPICIOUS, STRONG = 0.01, 1e-4  # p-values
LEAK_CHECKS = ("error rate by position in the batch", "error rate by position in the test order")


def check_leakage(table: Table, batch_size: int) -> list[Finding]:
    """Compare error rates by position.

    No correct training causes a difference between positions in the batch, so strong evidence is a failure. Along the
    test order it may have another cause (a data set that is not shuffled), so it is a warning at most.
    """
    errors, label = ~table["clean"], table["label"]
    by_batch, by_order = by_batch_position(errors, label, (*SIZES, batch_size)), by_test_order(errors, label)
    note = "; compare other models of this data set, which may be ordered"
    levels: dict[Outcome, float] = {"failed": STRONG, "warning": SUSPICIOUS}
    return [
        _finding(LEAK_CHECKS[0], by_batch, _in_batch, levels),
        _finding(LEAK_CHECKS[1], by_order, _in_order, {"warning": STRONG}, note),
    ]


def _in_batch(scan: Scan) -> tuple[str, str]:
    """The positions inside of a scan of batches, and those outside; positions count from 0."""
    if scan.size == 2:
        here, there = ("even", "odd") if scan.first == 0 else ("odd", "even")
        return f"at {here} positions of a batch", f"at {there} ones"
    return f"at {_span('position', scan)} of each batch of {scan.size}", "at the other positions"


def _in_order(scan: Scan) -> tuple[str, str]:
    return f"in {_span('part', scan)} of {scan.size} of the test order", "in the other parts"


def _span(what: str, scan: Scan) -> str:
    return f"{what} {scan.first}" if scan.last == scan.first + 1 else f"{what}s {scan.first} to {scan.last - 1}"


def _finding(
    name: str,
    scan: Scan | None,
    places: Callable[[Scan], tuple[str, str]],
    levels: Mapping[Outcome, float],
    note: str = "",
) -> Finding:
    """Turn a scan into a finding. levels: the outcome for a p-value below each level, the worst first."""
    if scan is None:
        return Finding(name, "not checkable", "too few examples")
    inside, outside = places(scan)
    rates = f"error rate {100 * scan.inside:.3g} % {inside}, {100 * scan.outside:.3g} % {outside}"
    evidence = f"{rates}, p = {scan.p:.2g}"
    for outcome, level in levels.items():
        if scan.p < level:
            return Finding(name, outcome, evidence + note)
    return Finding(name, "passed", evidence)


@dataclass(frozen=True)
class Scan:
    """The run of positions [first, last) out of `size` whose error rate differs most from the others'.

    inside, outside: the two rates. p: the p-value of this difference, corrected for the number of runs.
    """

    size: int
    first: int
    last: int
    inside: float
    outside: float
    p: float


def by_batch_position(errors: Flags, label: npt.NDArray[np.int64], sizes: Iterable[int] = SIZES) -> Scan | None:
    """The most significant difference between positions of a batch, over batch sizes; None for too few examples.

    errors, label (N,): the examples in test order. Only full batches count.
    """
    scans = []
    for size in sorted(set(sizes)):
        full = len(errors) // size * size
        if size >= 2 and full >= BATCHES * size:
            scans.append(scan_positions(errors[:full], label[:full], np.arange(full) % size, size))
    if not scans:
        return None
    best = min(scans, key=lambda scan: scan.p)
    return replace(best, p=min(1.0, best.p * len(scans)))


def by_test_order(errors: Flags, label: npt.NDArray[np.int64]) -> Scan | None:
    """The stretch of the test order that differs most from the rest; None for too few examples.

    A small p alone proves nothing: a data set may be harder at one end (the two halves of MNIST have two sources).
    """
    size = min(BLOCKS, len(errors) // BATCHES)
    position = np.arange(len(errors)) * size // len(errors)
    return scan_positions(errors, label, position, size) if size >= 2 else None


def scan_positions(errors: Flags, label: npt.NDArray[np.int64], position: npt.NDArray[np.int64], size: int) -> Scan:
    """The run of positions with the largest likelihood ratio (Kulldorff 1997), with its exact p-value (Bonferroni).

    position (N,): 0 .. size - 1, each of them used. The expected number of errors at a position follows from its
    classes, because classes differ in difficulty and some data sets are ordered by class.
    """
    label = np.unique(label, return_inverse=True)[1]
    rate = np.bincount(label, errors) / np.bincount(label)
    observed = _cumulative(np.bincount(position, errors, size))
    expected = _cumulative(np.bincount(position, rate[label], size))
    first, last = np.triu_indices(size + 1, k=1)
    whole = (first == 0) & (last == size)
    first, last = first[~whole], last[~whole]
    ratio = _likelihood_ratio(observed[last] - observed[first], expected[last] - expected[first], observed[-1])
    at = int(np.argmax(ratio))
    inside = (position >= first[at]) & (position < last[at])
    p = min(1.0, len(first) * exact_p(errors, label, inside))
    rates = float(errors[inside].mean()), float(errors[~inside].mean())
    return Scan(size, int(first[at]), int(last[at]), *rates, p)


def _cumulative(counts: npt.NDArray[Any]) -> Counts:
    """Cumulative sums, starting with zero."""
    return np.concatenate([[0.0], np.cumsum(counts)])


def _likelihood_ratio(observed: Counts, expected: Counts, total: float) -> Counts:
    """Log likelihood ratio of `observed` errors out of `total` against `expected` ones (Kulldorff 1997, Poisson)."""
    from scipy.special import rel_entr

    return rel_entr(observed, expected) + rel_entr((total - observed).clip(0), (total - expected).clip(0))


def exact_p(errors: Flags, label: npt.NDArray[np.int64], inside: Flags) -> float:
    """Two-sided p-value of the errors inside a set, if the errors of each class occur at random among its examples.

    Fisher's exact test, stratified by class: a sum of hypergeometric numbers, by convolution.
    """
    from scipy.stats import hypergeom

    probability = np.ones(1)  # of 0, 1, 2 ... errors inside
    for of_label in np.unique(label[errors]):
        of_class = label == of_label
        k = int((errors & of_class).sum())
        pmf = hypergeom.pmf(np.arange(k + 1), of_class.sum(), k, (inside & of_class).sum())
        probability = np.convolve(probability, pmf)
    observed = int((errors & inside).sum())
    return float(min(1.0, 2 * min(probability[: observed + 1].sum(), probability[observed:].sum())))
