"""Published results: SUITE/ENTRY/about.toml, and a folder for each seed with its record and its per-example table.

A published number is never edited: a run is added once. A contest that lowers its accuracy later is a separate file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core import sealed_json
from bench.core.bounded_text import check_toml
from bench.core.errors import UserError
from bench.core.example_table import (
    BRACKET,
    Flags,
    Table,
    certificates,
    certified,
    check_columns,
    corrupted,
    survivors,
    worst_by,
)
from bench.core.files import read_arrays, sha256, write_atomically
from bench.core.folders import (
    LOCK,
    PATIENCE,
    locked,
    recovered,
    remove_leftovers,
    visible_folders,
)
from bench.core.record_files import RECORD, TABLE, read_record
from bench.core.record_verdict import with_code
from bench.core.records import Artifact, Record
from bench.core.verification import verified
from leaderboard.model_info import ModelInfo
from leaderboard.verification_files import CHECKED, Checked, Reproduction, read_checked, read_reproduction

ABOUT, REPORTED, CONTESTS = "about.toml", "reported.json", "contests"
NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,63}", re.ASCII)


def results_folder() -> Path:
    """The folder of the results that are part of the package."""
    return Path(str(files("leaderboard"))) / "results"


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The description of an entry, about.toml."""

    title: str
    paper: str  # its citation
    licence: str  # of the weights and the code
    authors: str = ""
    url: str | None = None  # of the paper
    code: str | None = None  # its address
    extra_data: bool = False  # trained on more than the suite's training set
    note: str | None = None
    maintainers: tuple[str, ...] = ()  # the accounts that may add seeds; empty in earlier entries


class Contest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Adversarial examples that were found after the publication and verified."""

    by: str
    broken: list[int]  # indices of test examples
    witnesses: Artifact
    finished: str


@dataclass(frozen=True)
class EvaluatedRun:
    """A finished run with its outcome on each of the first n test examples, in their order."""

    folder: Path
    record: Record
    clean: Flags
    robust: Flags  # not broken by an attack under the record's threat model, nor by a contest
    certified: Flags
    distances: dict[str, npt.NDArray[np.float32]]  # found by each minimum-norm attack
    contests: tuple[Contest, ...] = ()
    robust_by: tuple[str, ...] = ()  # the attacks that determine `robust` (see worst_by), and contests

    checked: Checked | None = None  # derived by its verification; None in earlier entries
    columns: Mapping[str, Flags] = field(default_factory=dict)  # by attack: robust to it, and to its repetition
    certifiers: Mapping[str, Flags] = field(default_factory=dict)  # by certifier of the model: certified, and counted
    claimed: Flags | None = None  # certified by the record, checked or not
    passes: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # by attack, until the example was broken
    labels: npt.NDArray[np.int64] | None = None
    corrupted: npt.NDArray[np.float64] | None = None  # mean over all corruptions and severities; None without any

    @property
    def attacked(self) -> bool:
        """Whether it was attacked under its own threat model, by an attack or a bracket."""
        return self.record.worst is not None or self.record.bracket is not None


@dataclass(frozen=True)
class Entry:
    """A recipe with its seeds, a network with fixed weights, or a model that RobustBench lists."""

    suite: str
    name: str
    about: About
    runs: tuple[EvaluatedRun, ...] = ()
    reported: ModelInfo | None = None
    reproduced: Reproduction | None = None  # who trained it again

    @property
    def recipe(self) -> bool:
        """Whether it was trained here, so that claims about it are claims about seeds."""
        return bool(self.runs) and self.runs[0].record.training is not None

    @cached_property
    def measured(self) -> bool:
        """Whether every run was attacked under its threat model."""
        return bool(self.runs) and all(run.attacked for run in self.runs)


def check_name(name: str, what: str) -> str:
    """Return the name; UserError if it is not a safe name of a folder. what: `suite` or `entry`, for the message."""
    if not NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{what} {name!a} is not valid; use up to 64 of a-z 0-9 . _ + -, a letter or digit first")
    return name


def published_suites(results: Path) -> list[str]:
    """The suites that have entries: those with the most entries first, equal ones by name."""
    entries = {folder.name: len(visible_folders(recovered(folder))) for folder in visible_folders(results)}
    return sorted((suite for suite in entries if entries[suite]), key=lambda suite: (-entries[suite], suite))


def suite_folder(results: Path, suite: str) -> Path:
    """The folder of a suite's entries; finishes an interrupted change first."""
    return recovered(results / check_name(suite, "suite"))


def read_entries(results: Path, suite: str) -> tuple[list[Entry], list[str]]:
    """Read all entries of a suite in the order of their names; also return the problem of each that cannot be read."""
    entries: list[Entry] = []
    problems: list[str] = []
    for folder in visible_folders(suite_folder(results, suite)):
        try:
            entries.append(read_entry(folder, suite))
        except Exception as error:  # a malformed file may raise anything
            problems.append(left_out(folder.name, error))
    return entries, problems


def left_out(name: str, error: Exception) -> str:
    """The message of a board about an entry that it cannot show."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return f"entry {name} is left out: {' '.join(reason.split())[:500]}"


def read_entry(folder: Path, suite: str) -> Entry:
    """Read an entry from its folder, with the runs of all its seeds in order, or what its authors reported.

    UserError if it has no runs, if the folder of a run has another seed than its record, or if a file is not valid.
    """
    about = read_about(folder / ABOUT)
    reported = folder / REPORTED
    if reported.exists():
        return Entry(suite, folder.name, about, reported=ModelInfo.read(reported))
    runs = sorted((read_evaluated_run(seed) for seed in visible_folders(folder)), key=lambda run: run.record.seed)
    if not runs:
        raise UserError(f"{folder} has no results; add some with `bench submit`, or remove it")
    for run in runs:
        if run.folder.name != str(run.record.seed):
            raise UserError(f"{run.folder} holds a run of seed {run.record.seed}; restore it from its source")
    return Entry(suite, folder.name, about, tuple(runs), reproduced=read_reproduction(folder))


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """Read a run without its weights; UserError if its table is not the one that its record refers to."""
    record = with_code(verified(read_record(folder), folder))
    record.provenance.pop("source_files", None)  # hundreds of hashes, which no board shows
    examples = record.artifacts.get("examples")
    if examples is None or sha256(folder / TABLE) != examples.sha256:
        raise UserError(f"{folder / TABLE} is not the table that {RECORD} names; restore both files from their source")
    table = read_arrays(folder / TABLE)
    check_columns(table)
    if missing := {"weights", "witnesses"} - set(record.artifacts):
        raise UserError(f"{folder / RECORD} does not name its {min(missing)}; restore it from its source")
    if not np.array_equal(table["index"], np.arange(len(table["index"]))):
        raise UserError(f"{folder / TABLE} does not hold the first n test examples in order; boards compare those")
    robust, robust_by = survivors(table), worst_by(table)
    contests = tuple(read_contests(folder))
    for contest in contests:
        robust &= ~np.isin(table["index"], contest.broken)
        robust_by.append(f"contest by {contest.by}")
    checked = read_checked(folder)
    if checked is not None and checked.table != examples.sha256:
        raise UserError(f"{folder / CHECKED} is about a different table from the one in {RECORD}; restore both files")
    claimed, counted = certified(table), np.ones_like(table["clean"])
    if checked is not None:  # what was not certified again does not count
        counted = np.isin(table["index"], [*checked.proven, *checked.again])
    by_certifier = {spec: flags & counted for spec, flags in certificates(table).items() if spec != BRACKET}
    distances, passes = (
        {key.removeprefix(start): table[key] for key in table if key.startswith(start)}
        for start in ("distance/", "passes/")
    )
    of_corruptions = [each.mean(axis=0) for each in corrupted(table).values()]
    return EvaluatedRun(
        folder=folder, record=record, clean=table["clean"], robust=robust, certified=claimed & counted,
        distances=distances, contests=contests, robust_by=tuple(robust_by), checked=checked,
        columns=_columns(table, record, checked), certifiers=by_certifier, claimed=claimed, passes=passes,
        labels=table["label"], corrupted=np.mean(of_corruptions, axis=0) if record.corruptions else None,
    )  # fmt: skip


def _columns(table: Table, record: Record, checked: Checked | None) -> dict[str, Flags]:
    """The examples robust to each attack; in a checked run, only attacks that ran again, and robust to both runs."""
    columns: dict[str, Flags] = {}
    for spec in record.attacks:
        if checked is None:
            columns[spec] = table[f"robust/{spec}"]
        elif spec in checked.columns:
            columns[spec] = table[f"robust/{spec}"] & ~np.isin(table["index"], checked.columns[spec].fell)
    return columns


def read_about(path: Path) -> About:
    """Read about.toml; UserError if it is missing or not valid."""
    try:
        text = path.read_bytes()
        check_toml(text, str(path))
        return msgspec.toml.decode(text, type=About)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; it describes the entry (title, paper, licence)") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a valid {ABOUT}: {error}") from error


def write_contest(folder: Path, contest: Contest, witnesses: bytes) -> None:
    """Write a contest by the verification itself, with its witnesses beside it."""
    (folder / CONTESTS).mkdir(exist_ok=True)
    write_atomically(folder / CONTESTS / str(contest.witnesses.path), witnesses)
    write_atomically(contest_file(folder, contest.witnesses.sha256), sealed_json.encode(contest))


def add_contest(results: Path, suite: str, entry: str, seed: int, contest: Contest) -> Path:
    """Store a verified contest beside the run whose accuracy it lowers; returns the new file."""
    home = suite_folder(results, suite)
    path = contest_file(home / check_name(entry, "entry") / str(seed), contest.witnesses.sha256)
    with locked(home / LOCK, f"{home} is being changed by another process; try again", PATIENCE):
        path.parent.mkdir(exist_ok=True)
        remove_leftovers(path.parent)
        if path.exists():
            raise UserError(f"{path} exists already; these witnesses have been counted")
        write_atomically(path, sealed_json.encode(contest))
    return path


def contest_file(run: Path, witnesses: str) -> Path:
    """Where a contest of a published run is stored; witnesses: the hash of its adversarial examples."""
    return run / CONTESTS / f"{witnesses[:12]}.json"


def read_contests(run: Path) -> Iterator[Contest]:
    """The contests of a published run, in the order of their files; UserError if one is malformed."""
    for path in sorted((run / CONTESTS).glob("*.json")):
        try:
            yield read_contest(path)
        except (UserError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not a valid contest: {error}") from error


def read_contest(path: Path) -> Contest:
    """Read the contest in a file; does not convert errors."""
    return sealed_json.decode(path.read_bytes(), Contest, required=False)
