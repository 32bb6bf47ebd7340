"""Repeats the measurement of a run's corruptions on the same images."""

import numpy as np

from bench.core.classifier import as_classifier
from bench.core.example_table import CORRUPTED, Table
from bench.core.records import Record
from bench.datasets.arrays import Arrays
from bench.datasets.corruption_sources import corruption_sources
from bench.datasets.split import Split
from bench.evaluate.corrupted import measure_corruptions
from bench.verify.inputs import Settings
from bench.verify.report import Finding, finding_of
from bench.verify.table_checks import Predictor

CORRUPTED_AGAIN = "corruptions measured again"
TOLERATED = 1e-3  # share of all predictions; near ties may be rounded differently on another machine


def check_corruptions(
    predictor: Predictor, table: Table, data: Arrays, *, record: Record, settings: Settings
) -> Finding:
    """Check that corrupted images are classified as the table says; `not checkable` if the image files differ."""
    sources = corruption_sources(list(record.corruptions), data, settings.data_dir)
    others = [source.name for source in sources if (source.hash or None) != record.corruptions[source.name].file]
    if others:
        return Finding(CORRUPTED_AGAIN, "not checkable", f"the images of {', '.join(others)} are not those of the run")
    test = Split.test(data, settings.device, record.n_examples)
    again, _ = measure_corruptions(
        as_classifier(predictor.model),
        test,
        sources,
        n_test=len(data.y_test),
        batch_size=predictor.batch_size,
        show=True,
    )
    columns = [key for key in table if key.startswith(CORRUPTED)]
    differ = np.stack([table[key] != again[key] for key in columns])
    evidence = f"{differ.sum()} of {differ.size} outcomes differ, {len(sources)} corruptions of 5 severities"
    if differ.mean() <= TOLERATED:
        return Finding(CORRUPTED_AGAIN, "warning" if differ.any() else "passed", evidence)
    return finding_of(np.flatnonzero(differ.any(axis=0)).tolist(), CORRUPTED_AGAIN, "differ from the table", evidence)
