"""`bench import-verdicts RUN results.csv --by TOOL`: the answers of another verifier to a run's exported instances.

The answers are untrusted. A counterexample counts only if a forward pass confirms it, `holds` is shown as the tool's
claim, and claims that a witness of the run contradicts are reported.
"""

import csv
import gzip
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.example_table import certified
from bench.core.files import read_arrays, sha256
from bench.core.record_files import RECORD, TABLE, WEIGHTS, WITNESSES, read_run
from bench.core.verdict_files import Said, ToolVerdicts, write_verdicts
from bench.datasets.split import Split
from bench.evaluate.context import EvalContext
from bench.publish.untrusted_files import printable
from bench.publish.vnnlib_export import examples_by_instance
from bench.verify.inputs import Settings, load_data, load_model, make_context
from bench.verify.witnesses import check_points

ANSWERS: dict[str, Said] = {
    "unsat": "holds", "holds": "holds", "verified": "holds", "safe": "holds",
    "sat": "broken", "violated": "broken", "unsafe": "broken",
    "unknown": "unknown", "timeout": "unknown", "error": "unknown",
}  # fmt: skip
SUFFIXES = re.compile(r"\.(vnnlib|gz|csv|txt|counterexample)$")
VALUE = re.compile(r"\(\s*X(?:_(\d+)|\s*\[([\d,\s]+)\])\s+([-+.\deE]+)\s*\)")
LARGEST = 50_000_000  # maximum bytes of a tool's file
Points = dict[int, npt.NDArray[np.float32]]


def import_verdicts(
    folder: Path, results: Path, by: str, settings: Settings, counterexamples: Path | None = None
) -> ToolVerdicts:
    """Check and store the answers of a tool.

    results: a CSV in which each row has a cell with an exported property's name and a cell with the answer, like
    VNN-COMP's results.csv (sat, unsat, unknown, timeout, ...). counterexamples: a folder with one file per
    counterexample, whose name contains the property's name. UserError for rows that name no property of this run, or
    two answers to one.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,60}", by):
        raise UserError(f"--by '{printable(by)}' is not a name; use letters, digits, `.`, `_`, `+` and `-`")
    record, table = read_run(folder), read_arrays(folder / TABLE)
    instances = examples_by_instance(record, table)
    said = read_results(results, instances)
    data = load_data(record, table, settings)
    model = load_model(folder / WEIGHTS, record, data, settings)
    context = make_context(model, Split.test(data, settings.device), record, settings)
    shape = context.test.image_shape
    points = {} if counterexamples is None else read_counterexamples(counterexamples, instances, shape)
    confirmed = _adversarial(context, {i: x for i, x in points.items() if said.get(i) == "broken"})
    said = {i: "broken, not confirmed" if each == "broken" and i not in confirmed else each for i, each in said.items()}
    rows = {example: row for row, example in enumerate(table["index"].tolist())}
    proven = certified(table)
    verdicts = ToolVerdicts(
        by=by, record=sha256(folder / RECORD), results=sha256(results), said=dict(sorted(said.items())),
        contradicted=_contradicted(said, folder, context),
        refuted=sorted(i for i in confirmed if proven[rows[i]]),
    )  # fmt: skip
    write_verdicts(folder, verdicts)
    return verdicts


def read_results(path: Path, instances: Mapping[str, int]) -> dict[int, Said]:
    """Test example -> answer. A first row without an answer is a header."""
    try:
        rows = list(csv.reader(_text(path).splitlines()))
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV: {error}") from error
    said: dict[int, Said] = {}
    for number, row in enumerate(rows, 1):
        answers = [ANSWERS[cell.strip().casefold()] for cell in row if cell.strip().casefold() in ANSWERS]
        examples = [instances[name] for cell in row if (name := _stem(cell)) in instances]
        if not row or (number == 1 and not answers):
            continue
        if len(answers) != 1 or len(examples) != 1:
            raise UserError(
                f"{path}:{number} names {len(examples)} properties of this run and {len(answers)} answers; a row has "
                f"one of each, such as {next(iter(instances))}.vnnlib,unsat"
            )
        if examples[0] in said:
            raise UserError(f"{path}:{number} answers test example {examples[0]} a second time; keep one answer")
        said[examples[0]] = answers[0]
    if not said:
        raise UserError(f"{path} has no answers; a row names a property and has one of {', '.join(ANSWERS)}")
    return said


def read_counterexamples(folder: Path, instances: Mapping[str, int], shape: Sequence[int]) -> Points:
    """Test example -> image (C,H,W), from the files in `folder` whose name contains a property's name."""
    found: Points = {}
    names = re.compile("|".join(f"{re.escape(name)}(?!\\d)" for name in instances))
    for path in sorted(folder.iterdir()):
        if path.is_file() and (match := names.search(path.name)):
            found[instances[match[0]]] = _counterexample(path, shape)
    if not found:
        raise UserError(f"{folder} has no file with the name of a property, such as {next(iter(instances))}.txt")
    return found


def _counterexample(path: Path, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Read the values of X: `(X_17 0.5)` as in VNN-LIB 1, or `(X[0, 0, 3, 4] 0.5)` as in VNN-LIB 2."""
    image = np.full(int(np.prod(shape)), np.nan)
    for flat, place, value in VALUE.findall(_text(path)):
        try:
            at = int(flat) if flat else int(np.ravel_multi_index([int(n) for n in place.split(",")], (1, *shape)))
            image[at] = float(value)
        except (ValueError, IndexError) as error:
            raise UserError(f"{path} has a value that does not fit an image of shape {tuple(shape)}") from error
    if not np.isfinite(image).all():
        raise UserError(f"{path} has {int(np.isfinite(image).sum())} of the {image.size} values of X")
    return image.reshape(shape).astype(np.float32)


def _adversarial(context: EvalContext, points: Points) -> set[int]:
    """The test examples whose point is within the threat model and misclassified."""
    if not points:
        return set()
    index = np.array(sorted(points), dtype=np.int64)
    checked = check_points(context, index, np.stack([points[i] for i in index.tolist()]))
    return set(index[checked.adversarial].tolist())


def _contradicted(said: Mapping[int, Said], folder: Path, context: EvalContext) -> dict[int, str]:
    """Return `holds` claims that a witness of the run refutes, checked again by a forward pass."""
    witnesses = read_arrays(folder / WITNESSES)
    index, x_adv, attack = witnesses["index"], witnesses["x_adv"], witnesses["attack"]
    rows = np.flatnonzero([said.get(i) == "holds" for i in index.tolist()])
    if not len(rows):
        return {}
    breaking = rows[check_points(context, index[rows], x_adv[rows]).adversarial]  # others are of a larger eps
    first = {int(index[row]): str(attack[row]) for row in breaking[::-1]}
    return {i: f"it says that the property holds, and the witness of {first[i]} breaks it" for i in sorted(first)}


def _stem(cell: str) -> str:
    """The name of a property in a cell that may be a path."""
    name = cell.strip().replace("\\", "/").rpartition("/")[2]
    while (short := SUFFIXES.sub("", name)) != name:
        name = short
    return name


def _text(path: Path) -> str:
    """The text of a file that may be compressed with gzip."""
    if path.suffix != ".gz":
        data = path.read_bytes()[: LARGEST + 1]
    else:
        try:
            with gzip.open(path) as file:
                data = file.read(LARGEST + 1)
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is not a readable gzip file") from error
    if len(data) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST:,} bytes; give the results of fewer instances")
    return data.decode("utf-8", errors="replace")
