"""Files that nobody vouches for: bounded and checked before any of them is read into memory. Nothing is executed.

UserError, in one line, where a file is not what it must be.
"""

from __future__ import annotations

import json
import math
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bench.core.errors import CheckError, UserError

MIB = 2**20
DEEPEST, LONGEST, LARGEST = 16, 4096, 10.0**15  # of JSON: nesting, characters of a text, size of a number
MEMBERS, DIRECTORY = 1000, MIB  # of an .npz: arrays, and bytes of the list of them
HEADER = 4 * MIB  # bytes of the header of a .safetensors file
ZIP_END, ZIP64 = b"PK\x05\x06", b"PK\x06\x07"
NPY = b"\x93NUMPY\x01\x00"
NPY_HEADER = re.compile(
    rb"{'descr': '([<|][biufU][1-9]\d{0,8})', 'fortran_order': False, 'shape': \(([\d, ]*)\), } *\n"
)
ITEMSIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
    "U64": 8, "F64": 8,
}  # fmt: skip


@contextmanager
def one_plain_line(what: str) -> Iterator[None]:
    """Whatever goes wrong over somebody's file becomes a UserError of one line, without their control characters."""
    try:
        yield
    except (UserError, CheckError) as error:
        raise type(error)(plain(str(error))) from error
    except Exception as error:  # nobody can list what a malformed file may raise
        raise UserError(plain(f"{what} cannot be read ({type(error).__name__}: {error})")) from error


def plain(text: str) -> str:
    """Text as one line of printable ASCII, whatever was in it."""
    line = re.sub(r"[^ -~]", "?", " ".join(text.split()).encode("ascii", "backslashreplace").decode())
    return line if len(line) <= 500 else f"{line[:500]} ..."


def check_file(path: Path, most: int) -> None:
    """Is it a file, not a link or a device, of at most so many bytes?"""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path.name} is not a plain file; links, folders and devices are not read")
    if status.st_size > most:
        raise UserError(f"{path.name} has {status.st_size} bytes; at most {most} are read")


def read_json(path: Path, most: int) -> Any:
    check_file(path, most)
    return parse_json(path.read_bytes(), path.name)


def parse_json(text: bytes, name: str, longest: int = LONGEST) -> Any:
    """JSON without duplicate keys, and within what any of our files needs: depth, lengths, numbers, printable ASCII."""

    def number(word: str) -> float | int:
        value = float(word)
        if not abs(value) <= LARGEST:
            raise UserError(f"{name} holds the number {word:.40}; at most {LARGEST:.0e} is allowed")
        return int(word) if word.lstrip("-").isdecimal() else value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{name} has the key {key[:40]!a} twice")
            found[key] = value
        return found

    try:
        value = json.loads(
            text.decode(), object_pairs_hook=unique, parse_float=number, parse_int=number, parse_constant=number
        )
    except RecursionError as error:
        raise UserError(f"{name} is nested too deep; at most {DEEPEST} levels are read") from error
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({type(error).__name__}: {error})") from error
    for where, leaf in walk(value):
        if where.count("/") >= DEEPEST:
            raise UserError(f"{name} is nested too deep; at most {DEEPEST} levels are read")
        if isinstance(leaf, str):
            check_ascii(leaf, f"{name}: {where[:80]}", longest)
    return value


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """(path, value) of all that a JSON value holds, keys as values of the path of their object."""
    todo = [("", value)]
    while todo:
        where, value = todo.pop()
        yield where, value
        if isinstance(value, dict):
            todo += [(where, key) for key in value]
            todo += [(f"{where}/{key[:80].replace('/', '|')}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [(f"{where}/", inner) for inner in value]


def check_ascii(text: str, what: str, longest: int) -> str:
    if len(text) > longest:
        raise UserError(f"{what} has {len(text)} characters; at most {longest} are read")
    strange = re.search(r"[^ -~]", text)
    if strange:
        raise UserError(f"{what} holds the character U+{ord(strange[0]):04X}; only printable ASCII is allowed")
    return text


def check_arrays(path: Path, most: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The arrays of an .npz, by its directory and their headers alone: name -> (type, shape).

    Only flags, numbers and texts, never objects; no larger unpacked than `most`, nor than their headers say.
    """
    check_file(path, most)
    try:
        with path.open("rb") as file:
            _check_directory(file, path)
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive, path.name, most)
    except UserError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen kinds over a broken file
        raise UserError(
            f"{path.name} is not a readable .npz of plain arrays ({type(error).__name__}: {error})"
        ) from error


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Is the list of members short? zipfile would read all of it."""
    start = max(path.stat().st_size - 42, 0)
    file.seek(start)
    end = file.read(42)
    record, members, size = end[-22:], int.from_bytes(end[-12:-10], "little"), int.from_bytes(end[-10:-6], "little")
    if not (record.startswith(ZIP_END) and record.endswith(b"\0\0")):  # the length of a comment
        raise UserError(f"{path.name} is not an .npz, or there is something behind its end")
    if members > MEMBERS or size > DIRECTORY or end[:-22].startswith(ZIP64):
        raise UserError(f"{path.name} has more than {MEMBERS} arrays")


def _arrays(archive: zipfile.ZipFile, name: str, most: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > most:
        raise UserError(f"{name} unpacks to {total} bytes; at most {most} are read")
    found = {}
    for member in members:
        key = check_ascii(member.filename, f"{name}: an array's name", LONGEST).removesuffix(".npy")
        if key == member.filename or key in found or member.compress_type not in (0, 8) or member.flag_bits & 1:
            raise UserError(f"{name} has the member {member.filename!a}, which is no array of its own")
        found[key] = _array(archive, member, f"{name}: array '{key}'")
    return found


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    with archive.open(member) as file:
        head = file.read(len(NPY) + 2)
        length = int.from_bytes(head[len(NPY) :], "little")
        header = NPY_HEADER.fullmatch(file.read(length))
    if not head.startswith(NPY) or header is None:
        raise UserError(f"{what} is not of plain numbers, flags or texts; objects (pickles) are never read")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[2].decode().split(",") if size.strip())
    if len(head) + length + math.prod(shape) * dtype.itemsize != member.file_size or len(shape) > 8:
        raise UserError(f"{what} is not as large as it says: {member.file_size} bytes for {dtype} {shape}")
    return dtype, shape


def check_tensors(path: Path, most: int) -> dict[str, str]:
    """What the header of a .safetensors file says beside its tensors, after checking that they are plain and fill it.

    The format: the header's length (8 bytes), the header (JSON), the tensors one after another.
    """
    check_file(path, most)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(HEADER, size - 8):
            raise UserError(f"{path.name} is no .safetensors file; weights are read from no other (and no pickle)")
        header = parse_json(file.read(length), f"the header of {path.name}", longest=HEADER)
    said = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise UserError(f"{path.name} has a header that is no table of tensors")
    end = 0
    for first, last in sorted(_place(key, tensor, path.name) for key, tensor in header.items()):
        if first != end:
            raise UserError(f"{path.name} has tensors that overlap, or a gap at byte {end} of them")
        end = last
    if end != size - 8 - length:
        raise UserError(f"{path.name} has {size - 8 - length} bytes of tensors; its header says {end}")
    return said


def _place(key: str, tensor: Any, name: str) -> tuple[int, int]:
    """(first byte, byte after the last) of a tensor."""
    match tensor:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)], **rest} if (
            not rest and dtype in ITEMSIZES and all(type(side) is int and side >= 0 for side in shape)
        ):
            if last - first == math.prod(shape) * ITEMSIZES[dtype]:
                return first, last
    raise UserError(f"{name}: tensor '{key[:80]}' is not of plain numbers, or not as large as it says")
