"""Runs and boards as pandas.DataFrames. Imports no torch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.core.errors import UserError
from bench.core.example_table import certified
from bench.core.extras import import_extra
from bench.core.files import read_arrays
from bench.core.record_files import LOG, TABLE, find_records, read_run
from bench.core.records import Record
from bench.core.verdict_files import read_verdicts
from bench.core.verification import verified
from leaderboard.training_passes import comparable_passes

if TYPE_CHECKING:
    from pandas import DataFrame

Rows = Literal["evaluations", "examples", "epochs"]


def load_runs(path: str | Path = "runs", rows: Rows = "evaluations") -> DataFrame:
    """Load all runs at or below a folder into a pandas.DataFrame whose first columns name the run.

    rows: `evaluations`: one row per run, with its accuracies (fractions; `robust/SPEC` of an attack, `certified/SPEC`
    of a certifier, `attacked` and (for the model itself) `certified` of all, `union` under several threat models),
    costs and verdict. `examples`: one row per example, with the columns of examples.npz (bench/core/example_table.py),
    and `verdict/TOOL` for imported verdicts. `epochs`: one row per epoch of the training's log. UserError if there is
    no run, or without pandas.
    """
    pandas = import_extra("pandas", "pandas", "a DataFrame")
    readers: dict[str, Callable[[Path, Record], list[dict[str, Any]]]] = {
        "evaluations": _evaluation, "examples": _examples, "epochs": _epochs,
    }  # fmt: skip
    if rows not in readers:
        raise UserError(f"rows is '{rows}'; it must be one of {', '.join(readers)}")
    found: list[dict[str, Any]] = []
    for folder in find_records([Path(path)]):
        record = verified(read_run(folder), folder)
        found += [_key(folder, record) | row for row in readers[rows](folder, record)]
    return pandas.DataFrame(found)


def leaderboard(results: str | Path | None = None, suite: str | None = None) -> DataFrame:
    """Load the published boards into a pandas.DataFrame: one row per entry, with the columns of the board's CSV.

    results: a folder SUITE/ENTRY/SEED; None for that of the package. suite: one of its suites; None for all.
    """
    from leaderboard.board_tables import render_boards
    from leaderboard.build_board import build_board
    from leaderboard.published_results import published_suites, results_folder

    pandas = import_extra("pandas", "pandas", "a DataFrame")
    folder = results_folder() if results is None else Path(results)
    suites = published_suites(folder)
    if not suites or suite not in (None, *suites):
        raise UserError(f"{folder} has no entries of suite {suite or 'any'}; suites with entries: {', '.join(suites)}")
    boards = [build_board(folder, name) for name in ([suite] if suite else suites)]
    return pandas.read_csv(io.StringIO(render_boards(boards, "csv")))


def _key(folder: Path, record: Record) -> dict[str, Any]:
    return {
        "run": str(folder), "suite": record.suite, "dataset": record.dataset, "defense": record.defense,
        "model": record.model, "norm": record.threat.norm, "eps": record.threat.eps, "box": record.threat.box,
        "seed": record.seed,
    }  # fmt: skip


def _evaluation(folder: Path, record: Record) -> list[dict[str, Any]]:
    table = read_arrays(folder / TABLE)
    row: dict[str, Any] = {"n_examples": record.n_examples, "clean": record.clean.acc}
    row["attacked"] = None if record.attacked is None else record.attacked.robust_acc
    row["union"] = record.union and record.union.robust_acc
    row["certified"] = float(certified(table).mean()) if record.certifies_model else None
    row |= {f"robust/{spec}": attack.robust_acc for spec, attack in record.attacks.items()}
    row |= {f"certified/{spec}": each.certified_acc for spec, each in record.certifiers.items()}
    row |= {f"corrupted/{name}": each.acc for name, each in record.corruptions.items()}
    row["corrupted"] = record.corrupted and record.corrupted.acc
    row["open"] = None if record.bracket is None else record.bracket.open
    training = record.training
    row |= {
        "verdict": record.sanity.verdict, "parameters": record.parameters, "config": record.config_hash,
        "epochs": training and training.epochs, "training_seconds": training and training.seconds,
        "training_passes": comparable_passes(record),
    }  # fmt: skip
    return [row]


def _examples(folder: Path, record: Record) -> list[dict[str, Any]]:
    table = read_arrays(folder / TABLE)
    said = {each.by: each.said for each in read_verdicts(folder)}
    columns = {name: column.tolist() for name, column in table.items()}
    columns |= {f"verdict/{by}": [verdicts.get(i) for i in columns["index"]] for by, verdicts in said.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _epochs(folder: Path, record: Record) -> list[dict[str, Any]]:
    path = folder / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
