"""Atomic writing of files, files of plain arrays, and hashes. Imports no torch."""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.registry import one_line

NPY_1_0 = b"\x93NUMPY\x01\x00"


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a compressed .npz atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an .npz, without pickles; UserError if it is missing or broken."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # numpy, zipfile, zlib and tokenize raise many kinds
        raise UserError(f"{path} is not a readable .npz of plain arrays ({one_line(error)})") from error
    return arrays


def _array(data: bytes) -> npt.NDArray[Any]:
    """Read the array of a .npy file as numpy does, but parse a header that occurs many times only once."""
    if data[:8] != NPY_1_0:
        return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _header(data[8:start])
    if dtype.hasobject or start + math.prod(shape) * dtype.itemsize > len(data):
        raise ValueError("an array has objects, or fewer values than its header says")
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    return values.reshape(shape, order="F" if fortran else "C").copy()


@lru_cache(maxsize=1000)
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(text))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file, then rename it: no reader sees a part, and a crash leaves the old file or the new one.

    OSError, with the name of `path`, if it cannot be written, as on a full disk.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk, where the system supports it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
