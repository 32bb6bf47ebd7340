"""FashionMNIST."""

from __future__ import annotations

from pathlib import Path

from bench.core import registry
from bench.datasets.arrays import Arrays, find
from bench.datasets.download import from_torchvision


@registry.dataset("fashion-mnist")
def fashion_mnist(data_dir: Path | None = None) -> Arrays:
    """60,000 + 10,000 pictures of clothing, 28x28 grey."""
    return find("fashion-mnist", data_dir, from_torchvision("FashionMNIST"), shape=(1, 28, 28), classes=10)
