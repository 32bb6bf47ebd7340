"""Finished parts of an unfinished evaluation, in files that a later call reads instead of computing them again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.files import read_arrays, write_arrays

IDENTITY = "identity"  # the key of the identity in a file


@dataclass(frozen=True)
class PartialResults:
    """A folder with a file of arrays for each finished part, by its key.

    identity: of the evaluation; it is stored with each part, and parts of other evaluations are not read.
    """

    folder: Path
    identity: str

    def read(self, key: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return the arrays of a part; None if there are none of this evaluation, or the file cannot be read."""
        if not self._path(key).exists():
            return None
        try:
            arrays = read_arrays(self._path(key))
        except UserError:
            return None
        return arrays if str(arrays.pop(IDENTITY, None)) == self.identity else None

    def write(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Store the arrays of a part, in one step."""
        write_arrays(self._path(key), {**arrays, IDENTITY: np.array(self.identity)})

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
