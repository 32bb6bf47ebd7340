"""Reads score tables of any board: examples x entries or seeds x entries, as CSV or JSON lines.

Three forms are supported. Wide: one row per example (or seed), one column per entry, and the first column names the
row. Long: one row per score, with the columns `entry`, `score` and `example` or `seed` or both. Every Eval Ever: JSON
lines with `model_id`, `sample_id` and `evaluation.score` (instance_level_eval.schema.json, version 0.2).
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError

Rows = Literal["examples", "seeds"]
FORMS = (
    "a table is .csv or .jsonl: a row an example or a seed and a column an entry, with the row's name in the first "
    "column; or the columns entry, score and example or seed; or the instance records of Every Eval Ever"
)
LONG = ("entry", "score")  # columns of the long form, besides `example` and `seed`
TRUTH = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


@dataclass(frozen=True)
class ScoreTable:
    """Scores of N entries (N,M) on M examples or over M seeds; NaN where an entry has none.

    n_examples: the number of examples in each seed's mean score, if rows are seeds; None if unknown.
    """

    entries: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    rows: Rows
    n_examples: int | None = None


class _Cell(NamedTuple):
    entry: str
    seed: str | None
    example: str | None
    score: float
    at: str  # the place in the file
    content: str | None = None  # a hash of the example


def read_scores(paths: Sequence[Path], rows: Rows | None = None) -> ScoreTable:
    """Read all scores of some files into one table. Scores of several seeds and examples become one mean per seed.

    rows: what the rows of wide tables are; None means seeds if their first column is called `seed`, else examples.
    UserError for a file that is not a table, a score that is not a number, or an entry with two scores in one place.
    """
    cells = [cell for path in paths for cell in _read(path, rows)]
    if not cells:
        raise UserError(f"{paths[0]} has no scores; {FORMS}")
    if odd := next((cell for cell in cells if not cell.entry.strip()), None):
        raise UserError(f"{odd.at}: the entry of a score has no name; give each entry a name (in a header, its column)")
    _check_content(cells)
    seeds = any(cell.seed is not None for cell in cells)
    if odd := next((cell for cell in cells if (cell.seed is not None) != seeds), None):
        raise UserError(f"{odd.at}: some scores have a seed and some have none; give all of them one, or none")
    if seeds and all(cell.example is not None for cell in cells):
        return _means_of_seeds(cells)
    if odd := next((cell for cell in cells if seeds and cell.example is not None), None):
        raise UserError(f"{odd.at}: some scores have an example and some have none; give all of them one, or none")
    return _table([(cell.entry, cell.seed if seeds else cell.example, cell) for cell in cells], seeds)


def _table(places: Sequence[tuple[str, Any, _Cell]], seeds: bool, n_examples: int | None = None) -> ScoreTable:
    """Arrange (entry, row, cell) as a matrix, in the order of first appearance."""
    entries = {name: i for i, name in enumerate(dict.fromkeys(entry for entry, _, _ in places))}
    columns = {name: i for i, name in enumerate(dict.fromkeys(row for _, row, _ in places))}
    scores = np.full((len(entries), len(columns)), np.nan)
    for entry, row, cell in places:
        at = entries[entry], columns[row]
        if not math.isnan(scores[at]):
            what = row if isinstance(row, str) else row[1]
            raise UserError(f"{cell.at}: {entry} has two scores of '{what}'; keep one, or name their seeds in a column")
        scores[at] = cell.score
    return ScoreTable(tuple(entries), scores, "seeds" if seeds else "examples", n_examples)


def _means_of_seeds(cells: Sequence[_Cell]) -> ScoreTable:
    """The mean of each seed over its examples, which must be the same for all."""
    table = _table([(f"{cell.entry}\0{cell.seed}", cell.example, cell) for cell in cells], seeds=True)
    names = [tuple(name.split("\0")) for name in table.entries]
    for (entry, seed), scores in zip(names, table.scores, strict=True):
        if np.isnan(scores).any():
            raise UserError(f"seed {seed} of {entry} lacks scores of examples; all seeds need the same examples")
    entries = {name: i for i, name in enumerate(dict.fromkeys(entry for entry, _ in names))}
    seeds = {name: i for i, name in enumerate(dict.fromkeys(seed for _, seed in names))}
    means = np.full((len(entries), len(seeds)), np.nan)
    for (entry, seed), mean in zip(names, table.scores.mean(axis=1), strict=True):
        means[entries[entry], seeds[seed]] = mean
    return ScoreTable(tuple(entries), means, "seeds", table.scores.shape[1])


def _check_content(cells: Iterable[_Cell]) -> None:
    """UserError if one name refers to two examples, by the hashes of their content."""
    seen: dict[str | None, _Cell] = {}
    for cell in cells:
        if cell.content is not None and cell.content != seen.setdefault(cell.example, cell).content:
            other = seen[cell.example].entry
            raise UserError(
                f"{cell.at}: example '{cell.example}' of {cell.entry} differs from that of {other} (sample_hash)"
                "; give the files of one version of the data"
            )


def _read(path: Path, rows: Rows | None) -> Iterator[_Cell]:
    readers = {".csv": _csv_lines, ".jsonl": _json_lines}
    if path.suffix not in readers:
        raise UserError(f"{path} ends in '{path.suffix}'; {FORMS}")
    lines = readers[path.suffix](path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path} is empty; {FORMS}")
    at, names = first[0], list(first[1])
    if {"model_id", "sample_id", "evaluation"} <= set(names):
        read = _instance_cells
    elif set(LONG) <= set(names):
        read = _long_cells
    else:
        return (yield from _wide_cells(path, [first, *lines], rows))
    yield from read(at, first[1])
    for at, line in lines:
        yield from read(at, line)


def _csv_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, column -> text) of each row; UserError for rows of other lengths than the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = [name.strip() for name in next(reader, [])]
            if twice := [name for name in header if header.count(name) > 1]:
                raise UserError(f"{path}: two columns are called '{twice[0]}'; give each entry a name of its own")
            for row in reader:
                at = f"{path}:{reader.line_num}"
                if len(row) not in (0, len(header)):
                    raise UserError(f"{at} has {len(row)} cells, the header has {len(header)}; make them equal")
                if row:
                    yield at, dict(zip(header, row, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a readable CSV ({error}); {FORMS}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); {FORMS}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at = f"{path}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{at} is not JSON ({error}); {FORMS}") from error
        if not isinstance(value, dict) or not value:
            raise UserError(f"{at} is not a JSON object; {FORMS}")
        yield at, value


def _wide_cells(path: Path, lines: list[tuple[str, dict[str, Any]]], rows: Rows | None) -> Iterator[_Cell]:
    key = next(iter(lines[0][1]))
    seeds = rows == "seeds" or (rows is None and key.casefold() in ("seed", "seeds"))
    seen: set[str] = set()
    for at, line in lines:
        name = str(line.get(key, "")).strip()
        if not name or name in seen:
            raise UserError(
                f"{at}: the first column, '{key}', names the row, and '{name}' is not a new name; give each row its own"
            )
        seen.add(name)
        for entry, value in line.items():
            if entry != key and value not in ("", None):
                yield _Cell(entry, name if seeds else None, None if seeds else name, _score(value, at, entry), at)


def _long_cells(at: str, line: Mapping[str, Any]) -> Iterator[_Cell]:
    seed, example = (None if line.get(key) in (None, "") else str(line[key]) for key in ("seed", "example"))
    entry = str(line.get("entry") or "")
    if not entry or (seed is None and example is None):
        raise UserError(f"{at} names no entry, or neither an example nor a seed; {FORMS}")
    if line.get("score") not in (None, ""):
        yield _Cell(entry, seed, example, _score(line["score"], at, entry), at)


def _instance_cells(at: str, line: Mapping[str, Any]) -> Iterator[_Cell]:
    """Read a record of Every Eval Ever. The evaluation's name distinguishes the examples of several evaluations."""
    evaluation = line.get("evaluation")
    score = evaluation.get("score", evaluation.get("is_correct")) if isinstance(evaluation, dict) else None
    if score is None or "model_id" not in line or "sample_id" not in line:
        raise UserError(f"{at} lacks model_id, sample_id or evaluation.score; give valid instance records")
    example = f"{line.get('evaluation_name', '')}/{line['sample_id']}"
    content = line.get("sample_hash")
    entry = str(line["model_id"])
    yield _Cell(entry, None, example, _score(score, at, entry), at, None if content is None else str(content))


def _score(value: object, at: str, entry: str) -> float:
    """A number; true and false are 1 and 0."""
    try:
        text = str(value).strip()
        score = TRUTH[text.casefold()] if text.casefold() in TRUTH else float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{at}: the score of {entry} is '{value}'; scores are numbers, true or false, or empty")
    return score
