"""Published results: SUITE/ENTRY/about.toml, and a folder for each seed with its record and its per-example table.

A published number is never edited: a run is added once. A contest that lowers its accuracy later is a file beside it.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core import sealed_json
from bench.core.bounded_text import check_toml
from bench.core.errors import UserError
from bench.core.example_table import Flags, certified, check_columns, survivors, worst_by
from bench.core.files import read_arrays, sha256, write_atomically
from bench.core.folders import (
    LOCK,
    PATIENCE,
    changed_in_one_step,
    locked,
    remove_leftovers,
    settled,
    visible_folders,
)
from bench.core.record_files import RECORD, TABLE, read_record, write_record
from bench.core.record_verdict import with_code
from bench.core.records import Artifact, Record
from bench.core.verification import verified
from leaderboard.model_info import ModelInfo

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
    url: str | None = None
    extra_data: bool = False  # trained on more than the suite's training set
    note: str | None = None


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
    robust_by: tuple[str, ...] = ()  # the attacks that set `robust`: see worst_by; and contests

    @property
    def attacked(self) -> bool:
        """Was it attacked under its own threat model, by an attack or a bracket?"""
        return self.record.worst is not None or self.record.bracket is not None


@dataclass(frozen=True)
class Entry:
    """A recipe with its seeds, a network with fixed weights, or a model that RobustBench lists."""

    suite: str
    name: str
    about: About
    runs: tuple[EvaluatedRun, ...] = ()
    reported: ModelInfo | None = None

    @property
    def recipe(self) -> bool:
        """Was it trained here, so that claims about it are claims about seeds?"""
        return bool(self.runs) and self.runs[0].record.training is not None

    @cached_property
    def measured(self) -> bool:
        """Was every run attacked under its threat model?"""
        return bool(self.runs) and all(run.attacked for run in self.runs)


def check_name(name: str, what: str) -> str:
    if not NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{what} {name!a} is not valid; use up to 64 of a-z 0-9 . _ + -, a letter or digit first")
    return name


def published_suites(results: Path) -> list[str]:
    """The suites that have entries."""
    return [folder.name for folder in visible_folders(results) if visible_folders(settled(folder))]


def suite_folder(results: Path, suite: str) -> Path:
    """The folder of a suite's entries, after a change that was interrupted."""
    return settled(results / check_name(suite, "suite"))


def read_entries(results: Path, suite: str) -> tuple[list[Entry], list[str]]:
    """All entries of a suite in the order of their names, and what is wrong with each that cannot be read."""
    entries: list[Entry] = []
    problems: list[str] = []
    for folder in visible_folders(suite_folder(results, suite)):
        try:
            entries.append(read_entry(folder, suite))
        except Exception as error:  # a malformed file may raise anything
            problems.append(left_out(folder.name, error))
    return entries, problems


def left_out(name: str, error: Exception) -> str:
    """What a board says of an entry that it cannot show."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return f"entry {name} is left out: {' '.join(reason.split())[:500]}"


def read_entry(folder: Path, suite: str) -> Entry:
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
    return Entry(suite, folder.name, about, tuple(runs))


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """A run without its weights; UserError if its table is not the one that its record names."""
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
    contests = tuple(_read_contests(folder / CONTESTS))
    for contest in contests:
        robust &= ~np.isin(table["index"], contest.broken)
        robust_by.append(f"contest by {contest.by}")
    distances = {key.removeprefix("distance/"): table[key] for key in table if key.startswith("distance/")}
    return EvaluatedRun(folder, record, table["clean"], robust, certified(table), distances, contests, tuple(robust_by))


def read_about(path: Path) -> About:
    try:
        text = path.read_bytes()
        check_toml(text, str(path))
        return msgspec.toml.decode(text, type=About)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; it describes the entry (title, paper, licence)") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a valid {ABOUT}: {error}") from error


def add_runs(results: Path, entry: str, about: About, runs: Sequence[Path], *, url: str | None = None) -> Path:
    """Publish finished and verified runs as seeds of an entry, all or none in one step; returns the entry's folder.

    url: the public folder of its weights and witnesses; None if they are not published. Seeds that are published just
    so stay as they are. UserError if one is published otherwise, or if the entry has another recipe or another
    about.toml.
    """
    records = {run: read_record(run) for run in runs}
    suites = {record.suite for record in records.values()}
    if None in suites or len(suites) > 1:
        raise UserError(f"{runs[0]} has no suite, or another than other runs; run all with the rules of one suite")
    home = suite_folder(results, str(*suites)) / check_name(entry, "entry")
    with changed_in_one_step(home.parent) as part:
        new = {run: record for run, record in records.items() if not is_published(home, record)}
        if not new:
            return home
        check_seeds(list(new.values()), results, entry, about)
        if home.exists():
            shutil.copytree(home, part / entry)
        (part / entry).mkdir(exist_ok=True)
        (part / entry / ABOUT).write_bytes(msgspec.toml.encode(about))
        for run, record in new.items():
            folder = part / entry / str(record.seed)
            folder.mkdir()
            shutil.copyfile(run / TABLE, folder / TABLE)
            write_record(folder, msgspec.structs.replace(record, artifacts=_published(record, url)))
    return home


def is_published(home: Path, record: Record) -> bool:
    """Whether the entry in `home` has this very run; UserError if it has another of the seed."""
    folder = home / str(record.seed)
    if not folder.exists():
        return False
    published = msgspec.structs.replace(read_record(folder), artifacts={})
    hashes = [{name: file.sha256 for name, file in r.artifacts.items()} for r in (read_record(folder), record)]
    if hashes[0] == hashes[1] and published == msgspec.structs.replace(record, artifacts={}):
        return True
    raise UserError(f"{folder} is published already; add a new recipe as a new entry, such as {home.name}-2")


def check_seeds(records: Sequence[Record], results: Path, entry: str, about: About | None) -> None:
    """UserError unless the runs, with those of the entry that are published, are different trainings of one recipe.

    about: the new description of the entry, if known; it must equal the published one.
    """
    home = results / str(records[0].suite) / check_name(entry, "entry")
    if (home / ABOUT).exists() and about not in (None, read_about(home / ABOUT)):
        raise UserError(f"{home / ABOUT} differs from the new description; keep it as it is, or choose another name")
    published = [read_record(path.parent) for path in sorted(home.glob(f"*/{RECORD}"))]
    records = [*published, *records]
    first = records[0]
    for at, record in enumerate(records):
        if (record.suite, record.defense, record.config_hash) != (first.suite, first.defense, first.config_hash):
            raise UserError(
                f"seed {record.seed} is {record.defense} {record.config_hash} on {record.suite}, the others are "
                f"{first.defense} {first.config_hash} on {first.suite}; submit one recipe at a time"
            )
        for other in records[:at]:
            if other.seed == record.seed:
                raise UserError(f"seed {record.seed} was given twice; submit each seed once")
            if other.artifacts["weights"].sha256 == record.artifacts["weights"].sha256:
                raise UserError(f"seeds {other.seed} and {record.seed} have the same weights; train each seed")


def _published(record: Record, url: str | None) -> dict[str, Artifact]:
    """The artifacts of a run. All but the table get their address below `url`, if it is given, instead of a path."""

    def moved(file: Artifact) -> Artifact:
        name = Path(file.path or file.url or "").name
        address = file.url if url is None else f"{url.rstrip('/')}/{record.seed}/{name}"
        return msgspec.structs.replace(file, path=None, url=address)

    return {name: file if name == "examples" else moved(file) for name, file in record.artifacts.items()}


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


def _read_contests(folder: Path) -> Iterator[Contest]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield read_contest(path)
        except (UserError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not a valid contest: {error}") from error


def read_contest(path: Path) -> Contest:
    """The contest in a file, with whatever errors its reading has."""
    return sealed_json.decode(path.read_bytes(), Contest, required=False)
