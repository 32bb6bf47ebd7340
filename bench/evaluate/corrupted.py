"""Accuracy under common corruptions: fixed changes of the test images that no adversary chooses."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from bench.core.contracts import frozen
from bench.core.errors import UserError
from bench.core.example_table import CORRUPTED, SEVERITIES, Table, corrupted, mean_accuracy
from bench.core.files import read_arrays, write_arrays
from bench.core.progress import Progress
from bench.core.records import CorruptionResult
from bench.datasets.corruption_sources import CorruptionSource
from bench.datasets.split import Split
from bench.evaluate.clean import predict

IDENTITY, SECONDS = "identity", "seconds"  # arrays of a file beside the columns


@dataclass(frozen=True)
class FinishedCorruptions:
    """Where finished corruptions of an unfinished evaluation are kept. identity: of the evaluation."""

    folder: Path
    identity: str

    def read(self, source: CorruptionSource) -> tuple[Table, float] | None:
        """Return the columns and the seconds that they took; None if there are none of this evaluation."""
        path = self._path(source)
        if not path.exists():
            return None
        try:
            arrays = read_arrays(path)
        except UserError:
            return None
        identity, seconds = arrays.pop(IDENTITY, None), arrays.pop(SECONDS, None)
        return None if str(identity) != self.identity or seconds is None else (arrays, float(seconds))

    def write(self, source: CorruptionSource, columns: Table, seconds: float) -> None:
        more = {IDENTITY: np.array(self.identity), SECONDS: np.array(seconds)}
        write_arrays(self._path(source), columns | more)

    def _path(self, source: CorruptionSource) -> Path:
        return self.folder / f"{hashlib.sha256(f'corruption {source.text}'.encode()).hexdigest()[:16]}.npz"


def measure_corruptions(
    model: nn.Module,
    test: Split,
    sources: Sequence[CorruptionSource],
    *,
    n_test: int,
    batch_size: int,
    finished: FinishedCorruptions | None = None,
    show: bool = False,
) -> tuple[Table, dict[str, CorruptionResult]]:
    """Measure the columns `corrupted/NAME:severity=S` of each source, and its result.

    n_test: the number of images of the whole test set; `test` has the first of them.
    """
    table: Table = {}
    results: dict[str, CorruptionResult] = {}
    if not sources:
        return table, results
    with Progress("corruptions", len(sources) * len(test), "example", show=show) as progress:
        for source in sources:
            stored = None if finished is None else finished.read(source)
            if stored is None:
                start = time.perf_counter()
                columns = _correct(model, test, source, n_test, batch_size, progress)
                seconds = time.perf_counter() - start
                if finished is not None:
                    finished.write(source, columns, seconds)
            else:
                columns, seconds = stored
                progress.advance(len(test), source.name)
            table |= columns
            results[source.name] = _result(source, columns, seconds)
    return table, results


def _correct(
    model: nn.Module, test: Split, source: CorruptionSource, n_test: int, batch_size: int, progress: Progress
) -> Table:
    columns = {
        f"{CORRUPTED}{source.name}:severity={severity}": np.zeros(len(test), np.bool_) for severity in SEVERITIES
    }
    for batch in test.in_order(batch_size):
        for severity, column in zip(SEVERITIES, columns.values(), strict=True):
            with frozen(model):
                right = predict(model, source.images(batch, severity, n_test)) == batch.y
            column[batch.index.cpu().numpy()] = right.cpu().numpy()
        progress.advance(len(batch), source.name)
    return columns


def _result(source: CorruptionSource, columns: Table, seconds: float) -> CorruptionResult:
    flags = corrupted(columns)[source.name]
    mean = mean_accuracy(flags)
    return CorruptionResult(
        acc=mean.acc, ci95=mean.ci95, by_severity=[float(row.mean()) for row in flags], seconds=round(seconds, 3),
        file=source.hash or None,
    )  # fmt: skip
