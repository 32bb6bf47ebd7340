"""Encodes positions in a long row: Rice codes of the gaps between them, close to the entropy of a random mask."""

import math

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
LARGEST = 31  # of the parameter of a code


def entropy_bits(size: int, kept: int) -> float:
    """log2 of the number of masks that keep `kept` of `size`: a lower bound for any code of all of them."""
    return (math.lgamma(size + 1) - math.lgamma(kept + 1) - math.lgamma(size - kept + 1)) / math.log(2)


def encode(places: Places) -> tuple[int, bytes]:
    """Return the parameter k of the shortest Rice code for increasing places, and the code (Rice and Plaunt, 1971).

    A gap g is g >> k zeros and a one, then its last k bits; all unary parts come first.
    """
    gaps = np.diff(places, prepend=-1) - 1
    k = min(range(LARGEST + 1), key=lambda k: int((gaps >> k).sum()) + k * len(gaps))
    ends = np.cumsum((gaps >> k) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    unary[ends - 1] = 1
    low = (gaps[:, None] >> np.arange(k)) & 1
    return k, np.packbits(np.concatenate([unary, low.astype(np.uint8).ravel()])).tobytes()


def decode(code: bytes, k: int, count: int) -> Places:
    """Recover the places of `encode`; ValueError if the code does not hold exactly `count` of them."""
    bits = np.unpackbits(np.frombuffer(code, np.uint8))
    ends = np.flatnonzero(bits)[:count]
    start = int(ends[-1]) + 1 if len(ends) else 0
    if not 0 <= k <= LARGEST or len(ends) < count or len(code) != -(-(start + k * count) // 8):
        raise ValueError(f"a mask does not hold {count} positions")
    high = np.diff(ends, prepend=-1) - 1
    low = bits[start : start + k * count].reshape(count, k).astype(np.int64)
    gaps = (high << k) + (low << np.arange(k)).sum(axis=1)
    return np.cumsum(gaps + 1) - 1
