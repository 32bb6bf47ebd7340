"""Copies: seeds that are one training, and entries that are another entry's network under a new name.

Networks are compared by what they compute on test images and on noise (bench/verify/fingerprint.py).
"""

from collections.abc import Mapping, Sequence

from bench.verify.fingerprint import distance

# Above disguised copies (at most 0.016: tests/publish/test_copies.py), and below recipes that start with the same seed:
# averaged weights beside the last weights of the same training are 0.049 apart, independent trainings at least 0.285.
COPY = 0.03


def copies_among(prints: Mapping[str, Sequence[float]]) -> list[str]:
    """One line for each pair that is the same network. prints: the fingerprint of each run, by its name."""
    names = sorted(name for name, values in prints.items() if values)
    return [
        f"{one} and {other} are the same network (their outputs differ by {distance(prints[one], prints[other]):.1e})"
        for at, one in enumerate(names)
        for other in names[at + 1 :]
        if distance(prints[one], prints[other]) < COPY
    ]
