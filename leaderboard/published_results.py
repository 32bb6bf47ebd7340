"""Published results: SUITE/ENTRY/about.toml, and a folder a seed with its record and its per-example table.

A published number is never edited: a run is added once, and what lowers it later (a contest) lies beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.example_table import Flags, certified, survivors
from bench.core.files import read_arrays, sha256, write_atomically
from bench.core.record_files import RECORD, TABLE, read_record, write_record
from bench.core.records import Artifact, Record
from leaderboard.model_info import ModelInfo

ABOUT, REPORTED, CONTESTS = "about.toml", "reported.json", "contests"
NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,63}", re.ASCII)


def results_folder() -> Path:
    """The results that come with the package."""
    return Path(str(files("leaderboard"))) / "results"


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What an entry says of itself, in about.toml."""

    title: str
    paper: str  # as people cite it
    licence: str  # of the weights and the code
    authors: str = ""
    url: str | None = None
    extra_data: bool = False  # trained on more than the suite's training set
    note: str | None = None


class Contest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Adversarial examples that somebody found later, and that held up."""

    by: str
    broken: list[int]  # test examples
    witnesses: Artifact
    finished: str


@dataclass(frozen=True)
class EvaluatedRun:
    """One seed of an entry. A row is a test example, the first of the test order on."""

    folder: Path
    record: Record
    clean: Flags
    robust: Flags  # survives every attack of the record's threat model, and every contest
    certified: Flags
    distances: dict[str, npt.NDArray[np.float32]]  # of each minimum-norm attack
    contests: tuple[Contest, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A recipe with its seeds, a network with fixed weights, or what RobustBench reports of one."""

    suite: str
    name: str
    about: About
    runs: tuple[EvaluatedRun, ...] = ()
    reported: ModelInfo | None = None

    @property
    def recipe(self) -> bool:
        """Is it a way of training, so that claims about it are about its seeds?"""
        return bool(self.runs) and self.runs[0].record.training is not None

    @cached_property
    def measured(self) -> bool:
        """Has every run attacked under its threat model, so that there is an accuracy to rank by?"""
        return bool(self.runs) and all(attacked(run.record) for run in self.runs)


def attacked(record: Record) -> bool:
    return record.worst is not None or record.bracket is not None


def check_name(name: str, what: str) -> str:
    if not NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{what} {name!a} is no name; use up to 64 of a-z 0-9 . _ + -, a letter or digit first")
    return name


def published_suites(results: Path) -> list[str]:
    """The suites that have entries."""
    return [folder.name for folder in _folders(results)]


def read_entries(results: Path, suite: str) -> list[Entry]:
    """All entries of a suite, by name; UserError where a file of one of them is not what it must be."""
    return [read_entry(folder, suite) for folder in _folders(results / check_name(suite, "suite"))]


def read_entry(folder: Path, suite: str) -> Entry:
    about = read_about(folder / ABOUT)
    reported = folder / REPORTED
    if reported.exists():
        return Entry(suite, folder.name, about, reported=ModelInfo.read(reported))
    runs = sorted((read_evaluated_run(seed) for seed in _folders(folder)), key=lambda run: run.record.seed)
    if not runs:
        raise UserError(f"{folder} has no results; add some with `bench submit`, or remove it")
    return Entry(suite, folder.name, about, tuple(runs))


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """One seed; UserError where its table is not the one that its record names."""
    record = read_record(folder)
    named = record.artifacts.get("examples")
    if named is None or sha256(folder / TABLE) != named.sha256:
        raise UserError(f"{folder / TABLE} is not the table that {RECORD} names; restore the two from where they came")
    table = read_arrays(folder / TABLE)
    if not np.array_equal(table["index"], np.arange(len(table["index"]))):
        raise UserError(f"{folder / TABLE} is not of the first examples of the test order; boards compare those")
    robust = survivors(table)
    contests = tuple(_read_contests(folder / CONTESTS))
    for contest in contests:
        robust &= ~np.isin(table["index"], contest.broken)
    distances = {key.removeprefix("distance/"): table[key] for key in table if key.startswith("distance/")}
    return EvaluatedRun(folder, record, table["clean"], robust, certified(table), distances, contests)


def read_about(path: Path) -> About:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=About)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; an entry says there what it is") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not an entry's {ABOUT}: {error}") from error


def add_run(results: Path, entry: str, about: About, run: Path, *, url: str | None = None) -> Path:
    """Publish a finished and checked run as one seed of an entry; where it went.

    url: the folder where its weights and witnesses lie for everybody; None where nobody else can have them.
    UserError where the seed is there already, or the entry with another recipe or another about.toml.
    """
    record = read_record(run)
    if record.suite is None:
        raise UserError(f"{run} is of no suite; run it with a suite's data, norm and eps")
    home = results / check_name(record.suite, "suite") / check_name(entry, "entry")
    folder = home / str(record.seed)
    if folder.exists():
        raise UserError(f"{folder} is published already; a new recipe is a new entry, as {entry}-2")
    check_seeds([record], results, entry, about)
    folder.mkdir(parents=True)
    write_atomically(home / ABOUT, msgspec.toml.encode(about))
    write_atomically(folder / TABLE, (run / TABLE).read_bytes())
    write_record(folder, msgspec.structs.replace(record, artifacts=_published(record, url)))
    return folder


def check_seeds(records: Sequence[Record], results: Path, entry: str, about: About | None) -> None:
    """Are several runs seeds of one recipe, each a training of its own, and of that of the entry where it is there?

    about: what the entry is to say of itself, where that is known.
    """
    home = results / str(records[0].suite) / check_name(entry, "entry")
    if (home / ABOUT).exists() and about not in (None, read_about(home / ABOUT)):
        raise UserError(f"{home / ABOUT} says something else; leave the entry as it is, or choose another name")
    published = [read_record(path.parent) for path in sorted(home.glob(f"*/{RECORD}"))]
    records = [*published, *records]
    first = records[0]
    for at, record in enumerate(records):
        if (record.suite, record.defense, record.config_hash) != (first.suite, first.defense, first.config_hash):
            raise UserError(
                f"seed {record.seed} is of {record.defense} {record.config_hash} on {record.suite}, not of "
                f"{first.defense} {first.config_hash} on {first.suite}; submit one recipe at a time"
            )
        for other in records[:at]:
            if other.seed == record.seed:
                raise UserError(f"seed {record.seed} is there twice; submit each seed once")
            if other.artifacts["weights"].sha256 == record.artifacts["weights"].sha256:
                raise UserError(f"seeds {other.seed} and {record.seed} have the same weights; each is to be a training")


def _published(record: Record, url: str | None) -> dict[str, Artifact]:
    """The artifacts of a run with the address of each that does not lie beside the record, where it has one."""

    def moved(file: Artifact) -> Artifact:
        name = Path(file.path or file.url or "").name
        where = file.url if url is None else f"{url.rstrip('/')}/{record.seed}/{name}"
        return msgspec.structs.replace(file, path=None, url=where)

    return {name: file if name == "examples" else moved(file) for name, file in record.artifacts.items()}


def add_contest(results: Path, suite: str, entry: str, seed: int, contest: Contest) -> Path:
    """Lay a contest that held up beside the run that it lowers; where it went."""
    run = results / check_name(suite, "suite") / check_name(entry, "entry") / str(seed)
    path = run / CONTESTS / f"{contest.witnesses.sha256[:12]}.json"
    if path.exists():
        raise UserError(f"{path} is there already; these witnesses have been counted")
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(contest)) + b"\n")
    return path


def _read_contests(folder: Path) -> Iterator[Contest]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=Contest)
        except msgspec.MsgspecError as error:
            raise UserError(f"{path} is no contest: {error}") from error


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
