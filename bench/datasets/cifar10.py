"""CIFAR10."""

from __future__ import annotations

from pathlib import Path

from bench.core import registry
from bench.datasets.arrays import Arrays, find
from bench.datasets.download import from_torchvision


@registry.dataset("cifar10")
def cifar10(data_dir: Path | None = None) -> Arrays:
    """50,000 + 10,000 photographs of 10 classes, 32x32 colour."""
    return find("cifar10", data_dir, from_torchvision("CIFAR10"), shape=(3, 32, 32), classes=10)
