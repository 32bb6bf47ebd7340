"""Data sets by spec or by path."""

from pathlib import Path

from bench.core import registry
from bench.core.errors import UserError
from bench.core.specs import parse_spec
from bench.datasets.arrays import Arrays, check_arrays, read_npz


def load_arrays(dataset: str, data_dir: Path | None) -> Arrays:
    """A data set by spec, or by the path of an .npz. All of its arrays are checked."""
    if dataset.endswith(".npz"):
        return read_npz(Path(dataset))
    spec = parse_spec(dataset, registry.dataset)
    arrays = spec.build(data_dir)
    if not isinstance(arrays, Arrays):
        raise UserError(f"data set '{dataset}' returned a {type(arrays).__name__}; it must return bench.api.Arrays")
    return check_arrays(spec.text, vars(arrays))
