"""The format of proofs, from which a checker re-derives that an example is certified. Imports no torch.

A proof holds no bounds. It holds the slopes of the linear relaxations, the ReLUs to split, and the multipliers of the
splits. The checker derives every bound from them. All values in the format's range give sound bounds: slopes lie
between those of an activation's two pieces, and multipliers are not negative. So a proof may fail, but it cannot prove
a false claim.

Activations are counted from 0 in the order of the network's layers; a unit is an index of the flattened layer.

A proof is encoded as msgpack. The first byte says whether it is compressed with LZMA (short proofs may not be).
"""

import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError

VERSION = 1
INTERVALS = -1  # instead of the slopes of a leaf: its margins are bounded by the activations' intervals
LEAF = -1  # in Tree.splits
ALONE = -1  # in a Line
LARGEST = 2**28  # bytes of a proof, and the memory for unpacking it
RULES = ("parallel", "adaptive")
TIE = 1e-5  # of the side below zero: the side above is longer only by more than this, so that rounding decides no tie
PLAIN, PACKED = b"\0", b"\1"

Line = str | tuple[int, bytes]
"""The lower lines of one activation's units, all of which pass through the origin.

"parallel": with the slope of the chord. "adaptive": that of the piece on the longer side of zero. (base, bytes): a
number q for each unit, for the slope leak + (1 - leak) q / 255, which for ReLU is q / 255; the bytes are q if `base` is
ALONE, else q minus that of line `base`, an earlier one, modulo 256.
"""


class Bounds(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How the pre-activation bounds of one activation are derived.

    The checker first computes intervals from the bounds of earlier activations. Units that are stable by these keep
    them, and so do all units if `linear` is empty. The others get the tightest of several linear bounds: each entry of
    `linear` is the index of the slopes for a lower bound, and that for an upper bound. intersect: whether the interval
    is included. units: (unit, two indices of slopes) for units that have one more linear bound.
    """

    linear: list[tuple[int, int]] = []
    intersect: bool = False
    units: list[tuple[int, int, int]] = []


class Tree(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A proof that the margins z_label - z_j are positive, for each j of `classes` on its own.

    splits: the nodes in pre-order, the branch z <= 0 before z >= 0: `activation, unit` for a split on the sign of the
    unit's input z, LEAF for a leaf. slopes: for each leaf, an index of Proof.slopes, or INTERVALS. multipliers:
    float16, for each leaf one per split on its path, from the root.

    A leaf proves that the margin minus the sum of multiplier * z (of splits z >= 0) plus that of multiplier * z (of
    splits z <= 0) is positive, with the activations of the split units replaced by the piece on their side of zero.
    """

    classes: list[int]
    splits: list[int]
    slopes: list[int]
    multipliers: bytes = b""


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A proof that every image of the region has the class `label`.

    lines: the lines of single activations. slopes: the lines of all activations, as indices of `lines`, in order; if
    they are for bounds of activation k only, those of the first k. bounds: of every activation, in order. trees: every
    other class is in one of them.
    """

    version: int
    label: int
    lines: list[Line]
    slopes: list[list[int]]
    bounds: list[Bounds]
    trees: list[Tree]


@dataclass(frozen=True)
class Leaf:
    """path: (activation, unit, sign) of each split, sign -1 for z <= 0 and 1 for z >= 0. multipliers: one for each."""

    slopes: int
    path: Sequence[tuple[int, int, int]]
    multipliers: npt.NDArray[np.float64]


def encode(proof: Proof) -> bytes:
    text = msgspec.msgpack.encode(proof)
    packed = lzma.compress(text, format=lzma.FORMAT_ALONE, preset=9)
    return PACKED + packed if len(packed) < len(text) else PLAIN + text


def decode(data: bytes) -> Proof:
    """Decode a proof; UserError if these are not the bytes of one."""
    try:
        text = _unpacked(data)
        proof = msgspec.msgpack.decode(text, type=Proof)
    except (lzma.LZMAError, EOFError, MemoryError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise UserError(f"it cannot be decoded ({' '.join(str(error).split())[:80]})") from error
    if proof.version != VERSION:
        raise UserError(f"it has version {proof.version}; this program reads version {VERSION}")
    return proof


def _unpacked(data: bytes) -> bytes:
    if data[:1] == PLAIN:
        return data[1:]
    if data[:1] != PACKED:
        raise ValueError("its first byte is neither 0 nor 1")
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=LARGEST)
    text = unpacker.decompress(data[1:], max_length=LARGEST)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is too long, truncated, or followed by other bytes")
    return text


def lines_of(proof: Proof) -> list[str | npt.NDArray[np.uint8]]:
    """Decode the proof's lines: each is a rule, or the numbers q of the units. UserError if one is not valid."""
    lines: list[str | npt.NDArray[np.uint8]] = []
    for number, value in enumerate(proof.lines):
        if isinstance(value, str):
            if value not in RULES:
                raise UserError(f"line {number} is '{value}', which is none of {', '.join(RULES)}")
            lines.append(value)
            continue
        base, codes = value[0], np.frombuffer(value[1], dtype=np.uint8)
        if base != ALONE:
            before = at(lines, base, "line")
            if isinstance(before, str) or before.shape != codes.shape:
                raise UserError(f"line {number} is based on line {base}, which has other units")
            codes = before + codes
        lines.append(codes)
    return lines


def leaves_of(tree: Tree) -> list[Leaf]:
    """The leaves of a tree, in order. UserError if the tree is incomplete or has more than it needs."""
    paths = list(_paths(tree.splits))
    if len(tree.slopes) != len(paths):
        raise UserError(f"a tree with {len(paths)} leaves has slopes for {len(tree.slopes)}")
    count = sum(map(len, paths))
    if len(tree.multipliers) != 2 * count:
        raise UserError(f"a tree has {len(tree.multipliers)} bytes of multipliers, not 2 for each of {count}")
    multipliers = np.frombuffer(tree.multipliers, dtype="<f2").astype(np.float64)
    if not (np.isfinite(multipliers) & (multipliers >= 0) & ~np.signbit(multipliers)).all():
        raise UserError("a tree has a multiplier that is negative or not finite")
    parts = np.split(multipliers, np.cumsum([len(path) for path in paths]))
    return [Leaf(slopes, path, part) for slopes, path, part in zip(tree.slopes, paths, parts, strict=False)]


def _paths(splits: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """The path to each leaf."""
    numbers = iter(splits)
    waiting: list[list[tuple[int, int, int]]] = [[]]
    while waiting:
        path = waiting.pop()
        first = next(numbers, None)
        if first == LEAF:
            yield path
            continue
        unit = next(numbers, None)
        if first is None or unit is None:
            raise UserError("a tree ends before its last leaf")
        if (first, unit) in {(activation, other) for activation, other, _ in path}:
            raise UserError(f"a tree splits unit {unit} of activation {first} twice on one path")
        waiting += [[*path, (first, unit, 1)], [*path, (first, unit, -1)]]
    if next(numbers, None) is not None:
        raise UserError("a tree goes on after its last leaf")


def at(values: Sequence[Any], index: int, what: str) -> Any:
    """values[index]; UserError if there is none."""
    if not 0 <= index < len(values):
        raise UserError(f"it refers to {what} {index}, and has {len(values)} so far")
    return values[index]


def proof_arrays(proofs: Mapping[int, bytes]) -> dict[str, npt.NDArray[Any]]:
    """Convert the proofs of a run, by index of the example, to the arrays of a file.

    index (M,) int64; end (M,) int64: where the proof of each ends in `data`; data, uint8: all proofs concatenated.
    """
    data = np.frombuffer(b"".join(proofs.values()), dtype=np.uint8)
    ends = np.cumsum([len(proof) for proof in proofs.values()], dtype=np.int64)
    return {"index": np.array(list(proofs), dtype=np.int64), "end": ends, "data": data}


def proofs_from(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[int, bytes]:
    """The inverse of `proof_arrays`. UserError if the arrays are not valid."""
    if set(arrays) != {"index", "end", "data"}:
        raise UserError(f"it has the arrays {', '.join(sorted(arrays))}; proofs are in index, end and data")
    index, ends, data = arrays["index"], arrays["end"], arrays["data"]
    fits = index.dtype == ends.dtype == np.int64 and data.dtype == np.uint8 and data.ndim == 1
    if not fits or index.ndim != 1 or index.shape != ends.shape or len(set(index.tolist())) != len(index):
        raise UserError("its arrays do not have the types and shapes of proofs, or an example has two")
    starts = np.concatenate([[0], ends])
    if np.any(np.diff(starts) < 0) or starts[-1] != len(data):
        raise UserError("its proofs do not fill its data one after the other")
    parts = (data[start:end].tobytes() for start, end in zip(starts, ends, strict=False))
    return dict(zip(index.tolist(), parts, strict=True))
