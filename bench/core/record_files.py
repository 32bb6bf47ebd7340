"""Reading and writing run folders. Imports no torch."""

import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from bench.core import sealed_json
from bench.core.errors import CheckError, UserError
from bench.core.files import read_arrays, sha256, write_atomically
from bench.core.record_checks import check_record
from bench.core.record_verdict import with_updated_verdict
from bench.core.records import SCHEMA, Artifact, Record
from bench.core.registry import one_line

RECORD, TABLE, WITNESSES, CONFIG = "record.json", "examples.npz", "witnesses.npz", "config.json"
PROOFS, NETWORK = "proofs.npz", "network.json"  # of runs with proofs
LOG, WEIGHTS = "log.jsonl", "weights.safetensors"  # of the training
REPLACED = "replaced"  # the folder below OUT that keeps runs that were repeated


def write_record(folder: Path, record: Record) -> None:
    write_atomically(folder / RECORD, sealed_json.encode(record))


def read_record(folder: Path) -> Record:
    """Read the record in `folder`, and update its verdict by its results; UserError if it is not a record."""
    path = folder / RECORD
    try:
        values = sealed_json.values_of(path.read_bytes(), required=False)
        if isinstance(values, dict) and (schema := values.get("schema")) not in (None, SCHEMA):
            raise UserError(f"its schema is {schema!a:.20}, and this version reads schema {SCHEMA} only")
        return with_updated_verdict(msgspec.convert(values, Record))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {RECORD}; a finished run folder has one") from error
    except (UserError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a record: {one_line(error)}") from error


def read_run(folder: Path) -> Record:
    """Read the record of a finished run.

    CheckError unless the folder is named after this run, the record follows from its table, and the files have the
    hashes in the record.
    """
    record = read_record(folder)
    try:
        _check_place(folder.resolve(), record)
        _check_config(folder / CONFIG, record)
        check_record(record, read_arrays(folder / TABLE))
        for name, file in record.artifacts.items():
            if file.path is not None and sha256(folder / Path(file.path).name) != file.sha256:
                raise UserError(f"the file of its {name} has a different hash from the one in the record")
    except (UserError, OSError) as error:
        raise CheckError(f"{folder} was changed after it was finished: {error}; delete it and run again") from error
    return record


def _check_place(folder: Path, record: Record) -> None:
    """UserError if the folder is named LABEL-HASH/SEED after another run."""
    named = re.search(r"-([0-9a-f]{12})$", folder.parent.name)
    if named is not None and folder.name.isdecimal() and named[1] != record.config_hash:
        raise UserError(f"it holds a run of config {record.config_hash}")
    if folder.name.isdecimal() and int(folder.name) != record.seed:
        raise UserError(f"it holds a run of seed {record.seed}")


def _check_config(path: Path, record: Record) -> None:
    try:
        if path.exists() and msgspec.json.decode(path.read_bytes()) != record.config:
            raise UserError(f"{CONFIG} is not the config of its record")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{CONFIG} cannot be read") from error


def find_records(paths: Sequence[Path], *, strict: bool = False) -> list[Path]:
    """The folders at or below `paths` that hold a record, in order; UserError if a path has none.

    Replaced runs, and runs in a hidden folder, are included only if a path leads into their folder. A path that does
    not exist may be SUITE/ENTRY or SUITE/ENTRY/SEED of the published results. Paths that hold unfinished runs only are
    left out with a warning, if another path has a record.

    strict: neither published results nor unfinished runs, for what decides about the given runs or writes into them.
    """
    folders: list[Path] = []
    unfinished: list[Path] = []
    for path in paths:
        below = records_below(path)
        if not below and not strict:
            below = _published(path)
            if not below and path.is_dir() and any(path.rglob(CONFIG)):
                unfinished.append(path)
                continue
        if not below:
            raise UserError(f"{path} holds no {RECORD}; give a run folder, or a folder of run folders")
        folders += [p for p in below if p not in folders]
    if unfinished and not folders:
        raise UserError(
            f"{unfinished[0]} holds no {RECORD}: the run is not finished; repeat its command, which continues"
        )
    if unfinished:
        what = (
            "it holds an unfinished run"
            if len(unfinished) == 1
            else f"as {len(unfinished) - 1} others, it is unfinished"
        )
        print(f"warning: {unfinished[0]} is left out: {what}", file=sys.stderr)
    return folders


def _published(path: Path) -> list[Path]:
    """The records of SUITE/ENTRY or SUITE/ENTRY/SEED in the results of this package; empty if there are none."""
    names = path.parts
    if path.exists() or path.is_absolute() or len(names) not in (2, 3) or any(name.startswith(".") for name in names):
        return []
    return records_below(Path(str(files("leaderboard"))) / "results" / path)


def records_below(path: Path) -> list[Path]:
    """Like find_records for one path, but empty if it has no record."""
    found = sorted(p.parent for p in path.rglob(RECORD)) if path.is_dir() else []
    return [
        folder
        for folder in found
        if not any(part == REPLACED or part.startswith(".") for part in folder.relative_to(path).parts)
    ]


def check_distinct_seeds(records: Sequence[Record], folders: Sequence[Path], recipe: str | None = None) -> None:
    """UserError if two folders hold the same seed with the same settings: a mean over them would count it twice.

    recipe: its name in the message; the defense by default.
    """
    seen: dict[tuple[str, str, int], Path] = {}
    for record, folder in zip(records, folders, strict=True):
        key = (record.defense, record.config_hash, record.seed)
        if (other := seen.setdefault(key, folder)) is not folder:
            name = recipe or record.defense
            raise UserError(f"{other} and {folder} are both seed {record.seed} of {name}; give one of them")


def artifact(path: Path) -> Artifact:
    return Artifact(sha256=sha256(path), bytes=path.stat().st_size, path=path.name)
