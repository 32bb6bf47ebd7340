"""The data sets that torchvision downloads: MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.core import registry
from bench.datasets.arrays import Arrays, find_arrays


def download(class_name: str, folder: Path) -> dict[str, Any]:
    """The arrays of one of torchvision's data sets."""
    from torchvision import datasets  # here, because the import takes seconds

    load = partial(getattr(datasets, class_name), str(folder), download=True)
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        if class_name == "SVHN":  # its splits have names, and its images are (N,C,H,W)
            part = load(split=split)
            x, y = np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)), part.labels
        else:
            part = load(train=split == "train")
            x, y = part.data, part.targets
        arrays |= {f"x_{split}": np.asarray(x), f"y_{split}": np.asarray(y)}
    return arrays


@registry.dataset("mnist")
def mnist(data_dir: Path | None = None) -> Arrays:
    """60,000 + 10,000 handwritten digits, 28x28 grey."""
    return find_arrays("mnist", data_dir, partial(download, "MNIST"), shape=(1, 28, 28), classes=10)


@registry.dataset("fashion-mnist")
def fashion_mnist(data_dir: Path | None = None) -> Arrays:
    """60,000 + 10,000 pictures of clothing, 28x28 grey."""
    return find_arrays("fashion-mnist", data_dir, partial(download, "FashionMNIST"), shape=(1, 28, 28), classes=10)


@registry.dataset("cifar10")
def cifar10(data_dir: Path | None = None) -> Arrays:
    """50,000 + 10,000 photographs of 10 classes, 32x32 colour."""
    return find_arrays("cifar10", data_dir, partial(download, "CIFAR10"), shape=(3, 32, 32), classes=10)


@registry.dataset("cifar100")
def cifar100(data_dir: Path | None = None) -> Arrays:
    """50,000 + 10,000 photographs of 100 classes, 32x32 colour."""
    return find_arrays("cifar100", data_dir, partial(download, "CIFAR100"), shape=(3, 32, 32), classes=100)


@registry.dataset("svhn")
def svhn(data_dir: Path | None = None) -> Arrays:
    """73,257 + 26,032 house numbers, 32x32 colour."""
    return find_arrays("svhn", data_dir, partial(download, "SVHN"), shape=(3, 32, 32), classes=10)
