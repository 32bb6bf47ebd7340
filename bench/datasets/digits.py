"""scikit-learn's handwritten digits: 8x8 grey images, embedded in the library."""

from pathlib import Path

from bench.core import registry
from bench.core.files import read_arrays
from bench.datasets.arrays import Arrays, check_arrays

# The copy of the UCI data set (Alpaydin and Kaynak, CC BY 4.0) in scikit-learn, its pixels scaled from 0..16 to 0..255,
# split by train_test_split(test_size=360, stratify=labels, random_state=0). Embedded, because importing scikit-learn
# takes as long as importing torch.
EMBEDDED = Path(__file__).with_name("digits.npz")


@registry.dataset("digits")
def digits(data_dir: Path | None = None) -> Arrays:
    """1,437 + 360 handwritten digits, 8x8 grey; embedded, no download.

    The test split is fixed and stratified by class.
    """
    return check_arrays("digits", read_arrays(EMBEDDED))
