"""Images in files that are read and decoded on demand, for data that do not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.registry import one_line

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
WIDER = 256 / 224  # the shorter side of a resized image, in units of the cropped side
THREADS = 8  # that decode


class ImageFiles:
    """A lazy array of images uint8 (N,S,S,3): the paths of N files, and the side S.

    Each image is resized so that its shorter side is 256/224 S (bilinear), and cropped to its centre. Indexing by a
    slice, rows or a mask returns other ImageFiles; `read` returns pixels, and numpy.asarray the pixels of all images.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, root: Path, paths: npt.NDArray[np.object_], size: int) -> None:
        """paths: relative to `root`."""
        self.root, self.paths, self.size = root, paths, size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.paths), self.size, self.size, 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: slice | npt.NDArray[Any]) -> ImageFiles:
        return ImageFiles(self.root, self.paths[key], self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.uint8]:
        return self.read(range(len(self)))

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """The pixels (B,S,S,3) of some rows; UserError if a file is not an image."""
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(self._decoded, self.paths[list(rows)]))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def fingerprint(self) -> bytes:
        """The names and lengths of the files, which represent their contents in the hash of a data set."""
        lines = (f"{path} {(self.root / path).stat().st_size}\n" for path in self.paths)
        return f"{self.size}\n{''.join(lines)}".encode()

    def _decoded(self, path: str) -> npt.NDArray[np.uint8]:
        from PIL import Image  # here, because most data sets do not need it

        file = self.root / path
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # decoders of damaged files raise errors of many types
            raise UserError(f"{file} is not a readable image ({one_line(error)}); delete it or replace it") from error
        # rounded as by Resize and CenterCrop of torchvision
        shorter = round(WIDER * self.size)
        width, height = (max(self.size, int(shorter * side / min(image.size))) for side in image.size)
        left, top = (round((side - self.size) / 2) for side in (width, height))
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))


def find_image_files(folder: Path, size: int) -> tuple[ImageFiles, npt.NDArray[np.int64]]:
    """The images of a folder with one subfolder per class, and their labels, in a fixed random order.

    The classes have the order of the subfolders' names. The first images are a sample of all classes.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; it must have a folder of images for each class")
    paths: list[str] = []
    labels: list[int] = []
    for label, of_class in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        found = sorted(path for path in of_class.iterdir() if path.suffix.lower() in ENDINGS)
        paths += [str(path.relative_to(folder)) for path in found]
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"{folder} has no images; it must have a folder for each class with {', '.join(ENDINGS)} files")
    order = np.random.default_rng(0).permutation(len(paths))
    return ImageFiles(folder, np.array(paths, dtype=object)[order], size), np.array(labels, dtype=np.int64)[order]
