"""MNIST."""

from __future__ import annotations

from pathlib import Path

from bench.core import registry
from bench.datasets.arrays import Arrays, find
from bench.datasets.download import from_torchvision


@registry.dataset("mnist")
def mnist(data_dir: Path | None = None) -> Arrays:
    """60,000 + 10,000 handwritten digits, 28x28 grey."""
    return find("mnist", data_dir, from_torchvision("MNIST"), shape=(1, 28, 28), classes=10)
