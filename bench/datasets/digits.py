"""scikit-learn's handwritten digits: 8x8 grey images, embedded in the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.core import registry
from bench.core.files import read_arrays
from bench.datasets.arrays import Arrays, check_arrays

# The copy of the UCI data set (Alpaydin and Kaynak, CC BY 4.0) that scikit-learn ships, whose pixels of 0 to 16 are 0
# to 255 here, split by its train_test_split(test_size=360, stratify=labels, random_state=0). Embedded, for importing
# scikit-learn costs as much as torch.
EMBEDDED = Path(__file__).with_name("digits.npz")


@registry.dataset("digits")
def digits(data_dir: Path | None = None) -> Arrays:
    """1,437 + 360 handwritten digits, 8x8 grey; embedded, no download.

    The test split is fixed and stratified by class.
    """
    arrays = read_arrays(EMBEDDED)
    return check_arrays(
        "digits", {name: array if array.ndim > 1 else array.astype(np.int64) for name, array in arrays.items()}
    )
