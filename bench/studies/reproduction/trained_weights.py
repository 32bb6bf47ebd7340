"""Weights of your own runs for the rows of the thesis' tables 3.6 to 3.9, in addition to its published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.record_files import find_records, read_record
from bench.core.records import Record
from bench.core.spec_text import split_spec
from bench.studies.reproduction.checkpoint_names import CheckpointKey
from bench.studies.reproduction.paper_tables import Block

DEFENSES = {"plain": "standard", "at": "pgd-at"}  # by method; the other rows have the names of their defenses
EPOCHS = 100  # of every row of the thesis
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class RowWeights:
    """A file of weights for a row. run: the run that trained it, for the report; None for a published checkpoint."""

    file: Path
    title: str
    run: str | None = None


def trained_runs(folder: Path) -> list[tuple[Path, Record]]:
    """The runs at or below a folder that trained a defense and hold its weights; UserError if there is no run."""
    runs = [(path, read_record(path)) for path in find_records([folder])]
    return [(path, record) for path, record in runs if record.training is not None and (path / WEIGHTS).exists()]


def weights_of_row(
    block: Block, key: CheckpointKey, published: Path | None, runs: Sequence[tuple[Path, Record]]
) -> Iterator[RowWeights]:
    """The published checkpoint, if there is one, and the runs of the row's data, model, threat model and method."""
    if published is not None:
        yield RowWeights(published, published.stem)
    for path, record in runs:
        ours = record.defense, record.dataset, split_spec(record.model), record.threat.norm
        theirs = DEFENSES.get(key.method, key.method), key.dataset, split_spec(key.model), key.norm
        if ours == theirs and math.isclose(record.threat.eps, block.eps, rel_tol=1e-6):
            assert record.training is not None
            epochs = f"{record.training.epochs} of {EPOCHS} epochs"
            yield RowWeights(path / WEIGHTS, path.parent.name, f"trained here, {epochs}, seed {record.seed}")
