"""Checks of files from untrusted submissions, before any of them is read into memory.

Every byte of a submission is untrusted, names and sizes included. Sizes are limited before a file is opened, JSON is
limited in depth and length, and .npz files may hold only plain arrays. Nothing is executed, and no pickle is read. The
standard library's JSON and zip modules are trusted.

Every check raises UserError, in one line, if the file fails it.
"""

import json
import math
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np

from bench.core.bounded_text import check_json
from bench.core.errors import CheckError, UserError

MIB = 2**20
MAX_DEPTH, MAX_TEXT, MAX_NUMBER = 16, 4096, 10.0**15  # of JSON: nesting, characters of a string, size of a number
MAX_ARRAYS, MAX_DIRECTORY = 1000, MIB  # of an .npz: number of arrays, bytes of their directory
# characters that texts may hold
ALPHABETS = {
    "printable ASCII": " -~",
    "ASCII and Latin letters": " -~\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
}
HOST = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")  # no number
ZIP_END, ZIP64 = b"PK\x05\x06", b"PK\x06\x07"


@contextmanager
def errors_as_one_line(what: str) -> Iterator[None]:
    """Turn every exception into a UserError (or CheckError) of one printable line."""
    try:
        yield
    except (UserError, CheckError) as error:
        raise type(error)(printable(str(error))) from error
    except Exception as error:  # a malformed file may raise anything
        raise UserError(printable(f"{what} cannot be read ({type(error).__name__}: {error})")) from error


def printable(text: str) -> str:
    """Any text as one line of printable ASCII, cut after 500 characters."""
    line = re.sub(r"[^ -~]", "?", " ".join(text.split()).encode("ascii", "backslashreplace").decode())
    return line if len(line) <= 500 else f"{line[:500]} ..."


def check_file(path: Path, max_bytes: int) -> None:
    """Check that a file is regular, not a link or a device, and has at most `max_bytes`."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path.name} is not a regular file; links, folders and devices are not allowed")
    if status.st_size > max_bytes:
        raise UserError(f"{path.name} has {status.st_size} bytes; at most {max_bytes} are read")


def read_json(path: Path, max_bytes: int, max_text: int = MAX_TEXT) -> Any:
    """Read JSON without duplicate keys; depth, strings and numbers are limited, and text is printable ASCII.

    max_text: characters of a string.
    """
    check_file(path, max_bytes)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise UserError(f"{path.name} has the key {key[:40]!a} twice")
            values[key] = value
        return values

    with errors_as_one_line(path.name):
        data = path.read_bytes()
        check_json(data, path.name)
        value = json.loads(data.decode(), object_pairs_hook=unique)
    for place, leaf in walk_json(value):
        if place.count("/") >= MAX_DEPTH:
            raise UserError(f"{path.name} is nested too deep; at most {MAX_DEPTH} levels are allowed")
        if isinstance(leaf, str):
            check_text(leaf, f"{path.name}: {place[:80]}", max_text)
        elif isinstance(leaf, int | float) and not abs(leaf) <= MAX_NUMBER:  # NaN is not either
            raise UserError(f"{path.name} holds the number {str(leaf)[:40]}; at most {MAX_NUMBER:.0e} is allowed")
    return value


def walk_json(value: Any) -> Iterator[tuple[str, Any]]:
    """(path, value) of every value inside a JSON value. Keys are values too, at the path of their object."""
    pending = [("", value)]
    while pending:
        place, value = pending.pop()
        yield place, value
        if isinstance(value, dict):
            pending += [(place, key) for key in value]
            pending += [(f"{place}/{key[:80].replace('/', '|')}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            pending += [(f"{place}/", inner) for inner in value]


def check_text(text: str, what: str, max_length: int, alphabet: str = "printable ASCII") -> str:
    """Check and return the text. Other alphabets are refused because their letters could imitate Latin ones."""
    if len(text) > max_length:
        raise UserError(f"{what} has {len(text)} characters; at most {max_length} are allowed")
    if other := re.search(f"[^{ALPHABETS[alphabet]}]", text):
        raise UserError(f"{what} holds the character U+{ord(other[0]):04X}; only {alphabet} may be used")
    return text


def check_url(url: str) -> str:
    """Check that an address is public: https, a host name, no password."""
    try:
        parts = urlsplit(check_text(url, "a url", 1000))
        fine = parts.scheme == "https" and HOST.fullmatch(parts.hostname or "") and parts.port != 0
    except ValueError:  # brackets that do not match, or a port that is no number
        fine = False
    if not fine or "@" in url.partition("//")[2].partition("/")[0] or re.search(r"[\s<>\"'`\\]", url):
        raise UserError(f"'{url[:100]}' is not a public address; write https://HOST/...")
    return url


def check_npz(path: Path, max_bytes: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the arrays of an .npz file, reading only its directory and their headers.

    The arrays must hold booleans, numbers or strings, never objects. Unpacked, they must have the size in their
    headers, and at most `max_bytes` together.
    """
    check_file(path, max_bytes)
    with errors_as_one_line(path.name), path.open("rb") as file:
        _check_directory(file, path)
        with zipfile.ZipFile(file) as archive:
            return _read_headers(archive, path.name, max_bytes)


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Check that the directory of the zip file is small, because zipfile reads all of it."""
    start = max(path.stat().st_size - 42, 0)
    file.seek(start)
    end = file.read(42)
    record, members, size = end[-22:], int.from_bytes(end[-12:-10], "little"), int.from_bytes(end[-10:-6], "little")
    if not (record.startswith(ZIP_END) and record.endswith(b"\0\0")):  # no comment
        raise UserError(f"{path.name} is not an .npz, or has data after its end")
    if members > MAX_ARRAYS or size > MAX_DIRECTORY or end[:-22].startswith(ZIP64):
        raise UserError(f"{path.name} has more than {MAX_ARRAYS} arrays")


def _read_headers(archive: zipfile.ZipFile, name: str, max_bytes: int) -> dict[str, tuple[int, ...]]:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise UserError(f"{name} unpacks to {total} bytes; at most {max_bytes} are allowed")
    shapes: dict[str, tuple[int, ...]] = {}
    for member in members:
        key = check_text(member.filename, f"{name}: an array's name", MAX_TEXT).removesuffix(".npy")
        if key == member.filename or key in shapes or member.compress_type not in (0, 8) or member.flag_bits & 1:
            raise UserError(f"{name} has the member {member.filename!a}, which is not an array, or a duplicate")
        shapes[key] = _check_header(archive, member, f"{name}: array '{key}'")
    return shapes


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> tuple[int, ...]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        length = file.tell()
    if version != (1, 0) or dtype.kind not in "biufU":
        raise UserError(f"{what} does not hold plain numbers, booleans or strings; objects (pickles) are never read")
    if length + math.prod(shape) * dtype.itemsize != member.file_size or len(shape) > 8 or min(shape, default=0) < 0:
        raise UserError(f"{what} does not have the size in its header: {member.file_size} bytes for {dtype} {shape}")
    return tuple(shape)
