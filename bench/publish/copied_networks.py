"""Detects copies: seeds that share one training, and entries that rename another entry's network.

Networks are compared by their outputs on test images and on noise (bench/verify/fingerprint.py).
"""

from collections.abc import Mapping, Sequence

from bench.verify.fingerprint import distance

# Above disguised copies (1 % of noise on all weights, of rescaled units too: at most 0.055 on the published networks),
# and below half of what independent trainings are apart (at least 0.249 there, 0.285 in tests/publish/test_copies.py).
COPY = 0.1
# Of two entries' runs of one seed, which share the start and the order of the batches: averaged weights are 0.040 to
# 0.049 from the last weights of the same training.
SAME_SEED = 0.03


def copies_among(prints: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a line for each pair of the same network. prints: the fingerprint of each run, by its name ENTRY/SEED."""
    names = sorted(name for name, values in prints.items() if values)
    return [
        f"{one} and {other} are the same network (their outputs differ by {distance(prints[one], prints[other]):.1e})"
        for at, one in enumerate(names)
        for other in names[at + 1 :]
        if distance(prints[one], prints[other]) < _threshold(one, other)
    ]


def _threshold(one: str, other: str) -> float:
    (entry, _, seed), (other_entry, _, other_seed) = one.rpartition("/"), other.rpartition("/")
    return SAME_SEED if entry != other_entry and seed == other_seed else COPY
