"""Where corrupted test images come from: the files of CIFAR-10-C and CIFAR-100-C if they exist, else our own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.core import registry
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.example_table import SEVERITIES
from bench.core.files import sha256
from bench.core.registry import did_you_mean
from bench.datasets.arrays import Arrays, data_folder
from bench.datasets.corruptions import BENCHMARK, EXTRA, corrupted
from bench.datasets.image_files import ImageFiles

FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}  # of the data folder, by data set
IN_FILES_ONLY = ("frost",)
NEEDS_COLOUR = ("saturate",)


@dataclass(frozen=True)
class CorruptionSource:
    """One corruption of a test set.

    file: NAME.npy uint8 (5 N,H,W,C), the N test images once for each severity; None: the images are generated. hash:
    SHA-256 of the file.
    """

    name: str
    file: Path | None = None
    hash: str = ""

    @property
    def text(self) -> str:
        """The source as a config stores it."""
        return f"{self.name}:file={self.hash[:12]}" if self.file else self.name

    def images(self, batch: Batch, severity: int, n_test: int) -> Tensor:
        """The images of a batch under the corruption, float32 (B,C,H,W) in [0, 1]. n_test: of the whole test set."""
        index = batch.index.cpu().numpy()
        if self.file is not None:
            x = np.load(self.file, mmap_mode="r")[(severity - 1) * n_test + index]
        else:
            clean = (batch.x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            x = corrupted(clean, index, self.name, severity)
        return torch.from_numpy(np.ascontiguousarray(x)).to(batch.x.device).permute(0, 3, 1, 2).float().div(255)


def corruption_sources(names: Sequence[str], arrays: Arrays, data_dir: Path | None) -> list[CorruptionSource]:
    """The sources of corruptions by name; `benchmark` means the 15 of the paper, `all` means every corruption.

    These two omit corruptions that the images do not support: `frost` without its file, and `saturate` of grey images.
    UserError if a name is unknown, a file does not fit the test images, or the data set streams its images.
    """
    if not names:
        return []
    if isinstance(arrays.x_test, ImageFiles):
        raise UserError(f"{arrays.name} streams its images, which cannot be corrupted here; leave out --corruptions")
    if arrays.shape[0] not in (1, 3):
        raise UserError(f"corruptions are of images with 1 or 3 channels; {arrays.name} has {arrays.shape[0]}")
    folder = _folder(arrays, data_dir)
    groups = {"benchmark": BENCHMARK, "all": list(dict.fromkeys([*BENCHMARK, *EXTRA, *registry.corruption.names()]))}
    wanted: list[str] = []
    for name in names:
        members = [each for each in groups.get(name, ()) if _is_possible(each, arrays, folder)]
        wanted += members if name in groups else [_checked(name, arrays, folder)]
    return [_source(name, arrays, folder) for name in dict.fromkeys(wanted)]


def is_published(sources: Sequence[CorruptionSource]) -> bool:
    """Whether these are the 15 corruptions of the paper, all of its authors' files."""
    return {source.name for source in sources} == set(BENCHMARK) and all(source.file for source in sources)


def describe(names: Sequence[str], sources: Sequence[CorruptionSource]) -> str:
    """One line for the user: which corruptions are read, generated, and (if all 15 were requested) missing."""
    read, made = ([s.name for s in sources if (s.file is not None) == of_file] for of_file in (True, False))
    wanted = BENCHMARK if {"all", "benchmark"} & set(names) else ()
    missing = [name for name in wanted if name not in (*read, *made)]
    parts = [f"{len(read)} read from {sources[0].file.parent}"] if read and sources[0].file else []
    parts += [f"{len(made)} made here, with different random numbers from CIFAR-10-C's"] if made else []
    parts += [f"without {', '.join(missing)}"] if missing else []
    return f"corruptions: {'; '.join(parts)}"


def _folder(arrays: Arrays, data_dir: Path | None) -> Path | None:
    """The folder of the authors' files of a data set, or None."""
    if arrays.name not in FOLDERS:
        return None
    folder = data_folder(data_dir) / FOLDERS[arrays.name]
    return folder if folder.is_dir() else None


def _file(name: str, folder: Path | None) -> Path | None:
    path = None if folder is None else folder / f"{name}.npy"
    return path if path is not None and path.is_file() else None


def _is_possible(name: str, arrays: Arrays, folder: Path | None) -> bool:
    if _file(name, folder):
        return True
    return name not in IN_FILES_ONLY and (name not in NEEDS_COLOUR or arrays.shape[0] == 3)


def _checked(name: str, arrays: Arrays, folder: Path | None) -> str:
    if name not in registry.corruption and name not in IN_FILES_ONLY:
        hint = did_you_mean(name, [*registry.corruption.names(), "all", "benchmark"])
        raise UserError(f"unknown corruption '{name}': {hint}`bench list corruptions` shows all")
    if not _is_possible(name, arrays, folder):
        if name in IN_FILES_ONLY:
            raise UserError(
                f"corruption '{name}' is read from DATA_DIR/CIFAR-10-C/{name}.npy (or CIFAR-100-C), which is not "
                f"there for {arrays.name}; put it there, or leave it out"
            )
        raise UserError(f"corruption '{name}' needs images with three channels; leave it out for {arrays.name}")
    return name


def _source(name: str, arrays: Arrays, folder: Path | None) -> CorruptionSource:
    path = _file(name, folder)
    if path is None or folder is None:
        corrupted(arrays.x_test[:1], np.zeros(1, np.int64), name, SEVERITIES[-1])  # it may be a plugin, and fail
        return CorruptionSource(name)
    labels, images = (_read(file) for file in (folder / "labels.npy", path))
    n = len(arrays.y_test)
    shape = (len(SEVERITIES) * n, *arrays.x_test.shape[1:])
    if images.dtype != np.uint8 or images.shape != shape:
        raise UserError(f"{path} is {images.dtype} {images.shape}; it must be uint8 {shape}")
    if labels.shape != (shape[0],) or not np.array_equal(labels.reshape(-1, n), np.tile(arrays.y_test, (5, 1))):
        raise UserError(f"{folder / 'labels.npy'} does not repeat the {n} test labels of {arrays.name} five times")
    return CorruptionSource(name, path, sha256(path))


def _read(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy file ({registry.one_line(error)})") from error
