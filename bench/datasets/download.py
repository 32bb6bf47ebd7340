"""Data sets through torchvision, as the arrays that datasets.arrays checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def from_torchvision(class_name: str) -> Callable[[Path], dict[str, Any]]:
    """A download of one of torchvision's classes with a `train` flag, `data` and `targets`."""

    def download(folder: Path) -> dict[str, Any]:
        from torchvision import datasets  # here, for it costs seconds

        dataset = getattr(datasets, class_name)
        arrays = {}
        for split in ("train", "test"):
            part = dataset(str(folder), train=split == "train", download=True)
            arrays[f"x_{split}"] = np.asarray(part.data)
            arrays[f"y_{split}"] = np.asarray(part.targets)
        return arrays

    return download


def svhn_from_torchvision(folder: Path) -> dict[str, Any]:
    """SVHN has splits by name, and its images come channels first."""
    from torchvision.datasets import SVHN

    arrays = {}
    for split in ("train", "test"):
        part = SVHN(str(folder), split=split, download=True)
        arrays[f"x_{split}"] = np.ascontiguousarray(part.data.transpose(0, 2, 3, 1))
        arrays[f"y_{split}"] = np.asarray(part.labels)
    return arrays
