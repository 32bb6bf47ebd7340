"""Does a model know its test set? Error rates by position in the test batch, and in the test order.

A training loop that goes through the test set between two epochs, and lets something of it reach the weights, touches
the same positions of each test batch every time. The model then errs there less than elsewhere. That is how the
PER+at checkpoints of a published paper were caught: 0.06 % wrong at one half of the positions, 1.28 % at the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SIZES = (*(2**k for k in range(1, 11)), 50, 100, 200, 250, 500, 1000)  # the batch sizes that people use
BLOCKS = 64  # of the test order
BATCHES = 8  # at least so many, so that a slow trend along the test order cancels within a position


@dataclass(frozen=True)
class Scan:
    """The run of positions [first, last) out of `size` whose error rate differs most from that of all others.

    inside, outside: the two rates. p: of a difference that large by chance, corrected for all that was looked at.
    """

    size: int
    first: int
    last: int
    inside: float
    outside: float
    p: float


def by_batch_position(
    wrong: npt.NDArray[np.bool_], label: npt.NDArray[np.int64], sizes: Iterable[int] = SIZES
) -> Scan | None:
    """The clearest difference between positions of a batch, over candidate batch sizes; None for too few examples.

    wrong, label (N,): the examples in test order. Only full batches count.
    """
    scans = []
    for size in sorted(set(sizes)):
        full = len(wrong) // size * size
        if size >= 2 and full >= BATCHES * size:
            scans.append(scan(wrong[:full], label[:full], np.arange(full) % size, size))
    return _clearest(scans)


def by_test_order(wrong: npt.NDArray[np.bool_], label: npt.NDArray[np.int64]) -> Scan | None:
    """The stretch of the test order that differs most from the rest; None for too few examples.

    A small p alone proves nothing, for a data set may be harder at one end: MNIST's two halves are of two sources.
    """
    size = min(BLOCKS, len(wrong) // BATCHES)
    position = np.arange(len(wrong)) * size // len(wrong)
    return scan(wrong, label, position, size) if size >= 2 else None


def _clearest(scans: list[Scan]) -> Scan | None:
    if not scans:
        return None
    best = min(scans, key=lambda each: each.p)
    return Scan(best.size, best.first, best.last, best.inside, best.outside, min(1.0, best.p * len(scans)))


def scan(
    wrong: npt.NDArray[np.bool_], label: npt.NDArray[np.int64], position: npt.NDArray[np.int64], size: int
) -> Scan:
    """The run of positions that stands out most by Kulldorff's likelihood ratio, with its exact p (Bonferroni).

    position (N,): 0 .. size - 1, each of them used. What is expected of a position follows from the classes that are
    there, for classes differ in difficulty and some data sets go through them in turn.
    """
    label = np.unique(label, return_inverse=True)[1]
    rate = np.bincount(label, wrong) / np.bincount(label)
    seen = _from_zero(np.bincount(position, wrong, size))
    expected = _from_zero(np.bincount(position, rate[label], size))
    first, last = np.triu_indices(size + 1, k=1)
    whole = (first == 0) & (last == size)
    first, last = first[~whole], last[~whole]
    at = int(np.argmax(_likelihood_ratio(seen[last] - seen[first], expected[last] - expected[first], seen[-1])))
    inside = (position >= first[at]) & (position < last[at])
    return Scan(
        size=size,
        first=int(first[at]),
        last=int(last[at]),
        inside=float(wrong[inside].mean()),
        outside=float(wrong[~inside].mean()),
        p=min(1.0, len(first) * exact_p(wrong, label, inside)),
    )


def _from_zero(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cumulative sums, with the empty one first."""
    return np.concatenate([[0.0], np.cumsum(counts)])


def _likelihood_ratio(
    seen: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], total: float
) -> npt.NDArray[np.float64]:
    """Log likelihood ratio of `seen` errors where `expected` were, of `total` (Kulldorff 1997, Poisson)."""
    from scipy.special import rel_entr

    return rel_entr(seen, expected) + rel_entr((total - seen).clip(0), (total - expected).clip(0))


def exact_p(wrong: npt.NDArray[np.bool_], label: npt.NDArray[np.int64], inside: npt.NDArray[np.bool_]) -> float:
    """Two-sided p of the errors inside a set, where each class's errors fall on its examples at random.

    Fisher's exact test, stratified by class: a sum of hypergeometric numbers, by convolution.
    """
    from scipy.stats import hypergeom

    chance = np.ones(1)  # of 0, 1, 2 ... errors inside
    for one in np.unique(label[wrong]):
        of = label == one
        k = int((wrong & of).sum())
        chance = np.convolve(chance, hypergeom.pmf(np.arange(k + 1), of.sum(), k, (inside & of).sum()))
    seen = int((wrong & inside).sum())
    return float(min(1.0, 2 * min(chance[: seen + 1].sum(), chance[seen:].sum())))
