"""A data set as arrays in memory, and reading it from an .npz, with checks of all contents."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.errors import UserError
from bench.core.files import read_arrays
from bench.datasets.image_files import ImageFiles

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Arrays:
    """Images uint8 (N,H,W,C) and labels int64 (N,) from 0 to classes - 1, in the original order.

    The images may also be ImageFiles.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        height, width, channels = self.x_train.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        return int(self.y_train.max()) + 1

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the shapes and bytes of all four arrays; for ImageFiles, of the names and lengths of the files."""
        digest = hashlib.sha256()
        for key in KEYS:
            array = getattr(self, key)
            digest.update(f"{key}{array.shape}".encode())
            digest.update(array.fingerprint() if isinstance(array, ImageFiles) else np.ascontiguousarray(array).data)
        return digest.hexdigest()


def check_arrays(name: str, arrays: dict[str, Any]) -> Arrays:
    """Check the arrays of the data set `name` (a dict with KEYS); UserError if they are invalid."""
    if missing := [key for key in KEYS if key not in arrays]:
        raise UserError(f"{name}: {', '.join(missing)} missing; it must hold {', '.join(KEYS)}")
    x_train, x_test = (check_images(f"{name}: {key}", arrays[key]) for key in ("x_train", "x_test"))
    y_train = check_labels(f"{name}: y_train", arrays["y_train"], len(x_train))
    y_test = check_labels(f"{name}: y_test", arrays["y_test"], len(x_test))
    train, test = x_train.shape[1:], x_test.shape[1:]
    if train != test:
        raise UserError(f"{name}: training images are {train}, test images {test}; both must be of one size")
    present = np.unique(y_train)
    if len(present) < 2 or present[-1] != len(present) - 1:
        gap = next((k for k, label in enumerate(present) if k != label), len(present))
        raise UserError(f"{name}: y_train must use each label 0 .. K-1 with K at least 2; label {gap} does not occur")
    if y_test.max() > present[-1]:
        raise UserError(f"{name}: y_test has the label {y_test.max()}; y_train has 0 to {present[-1]} only")
    return Arrays(name, x_train, y_train, x_test, y_test)


def check_images(name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint8:
        raise UserError(f"{name} is {x.dtype}; images must be uint8, 0 to 255: (255 * x).round().astype('uint8')")
    if x.shape[:1] == (0,):
        raise UserError(f"{name} holds no images; it must hold at least one")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or not 1 <= x.shape[-1] <= 4 or 0 in x.shape:
        hint = "; transpose it by x.transpose(0, 2, 3, 1)" if x.ndim == 4 and 1 <= x.shape[1] <= 4 else ""
        raise UserError(
            f"{name} has the shape {x.shape}; it must be (N,H,W) or (N,H,W,C) with 1 to 4 channels last{hint}"
        )
    return x


def check_labels(name: str, y: np.ndarray, n: int) -> np.ndarray:
    if y.dtype.kind not in "iu":
        raise UserError(f"{name} is {y.dtype}; labels must be whole numbers")
    if y.shape != (n,):
        raise UserError(f"{name} has the shape {y.shape}; there are {n} images, so it must be ({n},)")
    if y.min() < 0 or y.max() >= 2**31:
        raise UserError(f"{name} has labels from {y.min()} to {y.max()}; they must be 0 .. K-1")
    return y.astype(np.int64)


def read_npz(path: Path) -> Arrays:
    """A data set from a user's file."""
    if not path.is_file():
        raise UserError(f"data set {path} does not exist; give a path to an .npz with {', '.join(KEYS)}")
    return check_arrays(str(path), read_arrays(path))


def find_arrays(
    name: str,
    data_dir: Path | None,
    download: Callable[[Path], dict[str, Any]],
    *,
    shape: tuple[int, int, int],
    classes: int,
) -> Arrays:
    """A known data set: DATA_DIR/NAME.npz if it exists, else `download(folder)`; UserError if its shape differs."""
    folder = data_folder(data_dir)
    path = folder / f"{name}.npz"
    if path.is_file():
        arrays = read_npz(path)
    else:
        try:
            arrays = check_arrays(name, download(folder))
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            raise UserError(
                f"{name}: {path} does not exist and the download fails ({type(error).__name__}); "
                f"put {name}.npz into a folder and name it with --data-dir or BENCH_DATA"
            ) from error
    if (arrays.shape, arrays.classes) != (shape, classes):
        raise UserError(f"{path}: images {arrays.shape}, {arrays.classes} classes; {name} has {shape}, {classes}")
    return Arrays(name, arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test)


def data_folder(data_dir: Path | None) -> Path:
    """--data-dir, else BENCH_DATA, else the user's cache. The first two must exist."""
    named = data_dir or (Path(os.environ["BENCH_DATA"]) if os.environ.get("BENCH_DATA") else None)
    if named is None:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robust-bracket"
    if not named.is_dir():
        raise UserError(f"data folder {named} does not exist; create it, or name another with --data-dir")
    return named
