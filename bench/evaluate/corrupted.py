"""Accuracy under common corruptions: fixed changes of the test images that no adversary chooses."""

import time
from collections.abc import Sequence

import numpy as np
from torch import nn

from bench.core.contracts import frozen
from bench.core.example_table import CORRUPTED, SEVERITIES, Table, corrupted, mean_accuracy
from bench.core.progress import Progress
from bench.core.records import CorruptionResult
from bench.datasets.corruption_sources import CorruptionSource
from bench.datasets.split import Split
from bench.evaluate.clean import predict
from bench.evaluate.partial_results import PartialResults

SECONDS = "seconds"  # the key of the time in a stored result, beside its columns


def measure_corruptions(
    model: nn.Module,
    test: Split,
    sources: Sequence[CorruptionSource],
    *,
    n_test: int,
    batch_size: int,
    finished: PartialResults | None = None,
    show: bool = False,
) -> tuple[Table, dict[str, CorruptionResult]]:
    """Measure the columns `corrupted/NAME:severity=S` of each source, and its result.

    n_test: the number of images of the whole test set; `test` has the first of them. finished: where finished
    corruptions of an unfinished evaluation are kept.
    """
    table: Table = {}
    results: dict[str, CorruptionResult] = {}
    if not sources:
        return table, results
    with Progress("corruptions", len(sources) * len(test), "example", show=show) as progress:
        for source in sources:
            stored = None if finished is None else _read(finished, source)
            if stored is None:
                start = time.perf_counter()
                columns = _correct(model, test, source, n_test, batch_size, progress)
                seconds = time.perf_counter() - start
                if finished is not None:
                    finished.write(_key(source), columns | {SECONDS: np.array(seconds)})
            else:
                columns, seconds = stored
                progress.advance(len(test), source.name)
            table |= columns
            results[source.name] = _result(source, columns, seconds)
    return table, results


def _key(source: CorruptionSource) -> str:
    return f"corruption {source.text}"


def _read(finished: PartialResults, source: CorruptionSource) -> tuple[Table, float] | None:
    """Return the columns and the seconds that they took; None if there are none of this evaluation."""
    columns = finished.read(_key(source))
    seconds = None if columns is None else columns.pop(SECONDS, None)
    return None if columns is None or seconds is None else (columns, float(seconds))


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
