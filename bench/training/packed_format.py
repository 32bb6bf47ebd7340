"""The file of a packed network: a header, the masks and values of its layers, all other tensors, a checksum."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.training import mask_coding

MAGIC = b"RBPACK01"
SUFFIX = ".packed"
MOST_HEADER = 2**20  # bytes
CHECKSUM = 32  # bytes of SHA-256
Weights = npt.NDArray[np.float32]


class PackedLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one weight is stored: size, number of kept weights, Rice parameter and bytes of the mask, and its values.

    The mask lists the kept weights, or the pruned ones if these are fewer; it is empty if all or none are kept. values:
    the one or two values that a kept weight can have, with a bit for each weight if they are two; empty if each weight
    is stored in float32.
    """

    size: int
    kept: int
    k: int
    mask: int
    values: tuple[float, ...]

    @property
    def value_bytes(self) -> int:
        if not self.values:
            return 4 * self.kept
        return -(-self.kept // 8) if len(self.values) == 2 else 0

    @property
    def lists_kept(self) -> bool:
        return 2 * self.kept <= self.size


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """spec: the build spec, as JSON. rest: bytes of all other tensors."""

    spec: msgspec.Raw
    layers: tuple[PackedLayer, ...]
    rest: int


def layer_bytes(weight: Weights) -> tuple[PackedLayer, bytes]:
    """Encode one flat weight as its header and its bytes."""
    chosen = weight != 0
    kept, size = int(chosen.sum()), weight.size
    listed = chosen if 2 * kept <= size else ~chosen
    k, mask = mask_coding.encode(np.flatnonzero(listed)) if 0 < kept < size else (0, b"")
    values = weight[chosen]
    table = np.unique(values)
    if 1 <= len(table) <= 2:
        coded = np.packbits(values == table[-1]).tobytes() if len(table) == 2 else b""
        return PackedLayer(size, kept, k, len(mask), tuple(table.tolist())), mask + coded
    return PackedLayer(size, kept, k, len(mask), ()), mask + values.astype("<f4").tobytes()


def layer_weight(layer: PackedLayer, data: bytes) -> Weights:
    """Decode the flat weight of a layer; ValueError if its bytes do not fit its header."""
    if not 0 <= layer.kept <= layer.size or len(layer.values) > 2 or len(data) != layer.mask + layer.value_bytes:
        raise ValueError("a layer does not fit its header")
    count = layer.kept if layer.lists_kept else layer.size - layer.kept
    listed = np.zeros(layer.size, bool)
    if 0 < layer.kept < layer.size:
        places = mask_coding.decode(data[: layer.mask], layer.k, count)
        if places[-1] >= layer.size:
            raise ValueError("a mask reaches beyond its layer")
        listed[places] = True
    elif layer.mask or layer.k:
        raise ValueError("a layer has a mask that it does not need")
    chosen = (listed if layer.lists_kept else ~listed) if layer.kept < layer.size else np.ones(layer.size, bool)
    weight = np.zeros(layer.size, np.float32)
    rest = data[layer.mask :]
    if not layer.values:
        weight[chosen] = np.frombuffer(rest, "<f4")
    elif len(layer.values) == 2:
        second = np.unpackbits(np.frombuffer(rest, np.uint8), count=layer.kept).astype(bool)
        weight[chosen] = np.where(second, np.float32(layer.values[1]), np.float32(layer.values[0]))
    else:
        weight[chosen] = layer.values[0]
    return weight


def write(spec: bytes, weights: Sequence[Weights], rest: bytes) -> bytes:
    """The whole file."""
    layers = [layer_bytes(weight) for weight in weights]
    header = msgspec.json.encode(Header(msgspec.Raw(spec), tuple(layer for layer, _ in layers), len(rest)))
    body = MAGIC + len(header).to_bytes(4, "little") + header + b"".join(data for _, data in layers) + rest
    return body + hashlib.sha256(body).digest()


def read(path: Path) -> tuple[Header, list[Weights], bytes]:
    """Read the header, the flat weights and the bytes of the other tensors; UserError if the file is not valid."""
    try:
        data = path.read_bytes()
        body = data[:-CHECKSUM]
        if not data.startswith(MAGIC):
            raise ValueError("it is no packed network")
        if hashlib.sha256(body).digest() != data[-CHECKSUM:]:
            raise ValueError("its checksum does not fit; it was cut or changed")
        start = len(MAGIC) + 4
        length = int.from_bytes(body[len(MAGIC) : start], "little")
        if length > min(MOST_HEADER, len(body) - start):
            raise ValueError("its header is longer than the file may hold")
        header = msgspec.json.decode(body[start : start + length], type=Header)
        weights, place = [], start + length
        if place + sum(layer.mask + layer.value_bytes for layer in header.layers) + header.rest != len(body):
            raise ValueError("it is longer or shorter than its header says")
        for layer in header.layers:
            end = place + layer.mask + layer.value_bytes
            weights.append(layer_weight(layer, body[place:end]))
            place = end
        return header, weights, body[place:]
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist; `bench pack` writes such files") from error
    except (ValueError, OverflowError, MemoryError, msgspec.MsgspecError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); pack the network again with `bench pack`"
        ) from error
