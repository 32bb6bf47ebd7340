"""Data sets by spec or by path."""

from pathlib import Path

from bench.core import registry
from bench.core.errors import UserError
from bench.datasets.arrays import Arrays, check_arrays, read_npz
from bench.datasets.filters import parse_filtered


def load_arrays(dataset: str, data_dir: Path | None) -> Arrays:
    """A data set by spec, which may have filters, or by the path of an .npz. All of its arrays are checked."""
    if dataset.endswith(".npz"):
        return read_npz(Path(dataset))
    spec, filters = parse_filtered(dataset, registry.dataset)
    arrays = spec.build(data_dir)
    if not isinstance(arrays, Arrays):
        raise UserError(
            f"data set '{dataset}' returned an object of class {type(arrays).__name__}; it must return bench.api.Arrays"
        )
    arrays = check_arrays(spec.text, vars(arrays))
    return arrays if filters is None else check_arrays(spec.text, vars(filters(arrays, spec.text)))
