"""scikit-learn's handwritten digits: 8x8 grey images, embedded in the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.core import registry
from bench.datasets.arrays import Arrays, checked

TEST_EXAMPLES = 360


@registry.dataset("digits")
def digits(data_dir: Path | None = None) -> Arrays:
    """1,437 + 360 handwritten digits, 8x8 grey; embedded, no download.

    The test split is fixed (its own seed) and stratified by class.
    Pixels of 0 to 16 become 0 to 255.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=TEST_EXAMPLES, stratify=data.target, random_state=0
    )
    return checked(
        "digits",
        {
            "x_train": images[train],
            "y_train": data.target[train],
            "x_test": images[test],
            "y_test": data.target[test],
        },
    )
