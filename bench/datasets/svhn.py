"""SVHN."""

from __future__ import annotations

from pathlib import Path

from bench.core import registry
from bench.datasets.arrays import Arrays, find
from bench.datasets.download import svhn_from_torchvision


@registry.dataset("svhn")
def svhn(data_dir: Path | None = None) -> Arrays:
    """73,257 + 26,032 house numbers, 32x32 colour."""
    return find("svhn", data_dir, svhn_from_torchvision, shape=(3, 32, 32), classes=10)
