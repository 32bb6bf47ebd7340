"""Synthetic images, for tests and for measuring speed."""

from pathlib import Path

import numpy as np

from bench.core import registry
from bench.core.errors import UserError
from bench.datasets.arrays import Arrays, check_arrays


@registry.dataset("fake")
def fake(
    data_dir: Path | None = None,
    *,
    shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    train: int = 512,
    test: int = 128,
    seed: int = 0,
) -> Arrays:
    """The mean of noise and a prototype per class: `fake:shape=3+32+32:classes=10:train=512:test=128`.

    shape: channels, height and width, joined by '+'. classes: how many. train, test: the number of images. seed: of all
    random numbers.
    """
    if len(shape) != 3 or min(*shape, train, test) < 1 or max(*shape, classes) > 4096 or classes < 2 or seed < 0:
        raise UserError("'fake' takes shape=C+H+W, each 1 to 4096, 2 to 4096 classes, train and test >= 1, seed >= 0")
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    prototypes = rng.integers(0, 256, (classes, height, width, channels))

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % classes
        noise = rng.integers(0, 256, (n, height, width, channels))
        return ((prototypes[y] + noise) // 2).astype(np.uint8), y

    x_train, y_train = split(train)
    x_test, y_test = split(test)
    return check_arrays("fake", {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test})
