"""Published results: SUITE/ENTRY/about.toml, and a folder for each seed with its record and its per-example table.

A published number is never edited: a run is added once. A contest that lowers its accuracy later is a file beside it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.example_table import BRACKET, Flags, Table, certificates, certified, survivors, worst_by
from bench.core.files import read_arrays, sha256, write_atomically
from bench.core.record_files import RECORD, TABLE, read_record, write_record
from bench.core.records import Artifact, Record, Sanity
from bench.core.verification import verified
from leaderboard.checked_claims import (
    CHECKED,
    Checked,
    Reproduction,
    read_checked,
    read_reproduction,
    write_checked,
)
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
    maintainers: tuple[str, ...] = ()  # the accounts that may add seeds; of earlier entries nobody


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
    checked: Checked | None = None  # what its verification derived again; None in earlier entries
    columns: Mapping[str, Flags] = field(default_factory=dict)  # by attack: robust to it, also when it ran again
    certifiers: Mapping[str, Flags] = field(default_factory=dict)  # by certifier of the model: certified, and counted
    claimed: Flags | None = None  # certified by the record, whether it was checked or not

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
    reproduced: Reproduction | None = None  # who trained it again

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
    return [folder.name for folder in _folders(results)]


def read_entries(results: Path, suite: str) -> list[Entry]:
    """All entries of a suite in the order of their names; UserError if a file of an entry is malformed."""
    return [read_entry(folder, suite) for folder in _folders(results / check_name(suite, "suite"))]


def read_entry(folder: Path, suite: str) -> Entry:
    about = read_about(folder / ABOUT)
    reported = folder / REPORTED
    if reported.exists():
        return Entry(suite, folder.name, about, reported=ModelInfo.read(reported))
    runs = sorted((read_evaluated_run(seed) for seed in _folders(folder)), key=lambda run: run.record.seed)
    if not runs:
        raise UserError(f"{folder} has no results; add some with `bench submit`, or remove it")
    return Entry(suite, folder.name, about, tuple(runs), reproduced=read_reproduction(folder))


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """A run without its weights; UserError if its table is not the one that its record names."""
    record = verified(read_record(folder), folder)
    examples = record.artifacts.get("examples")
    if examples is None or sha256(folder / TABLE) != examples.sha256:
        raise UserError(f"{folder / TABLE} is not the table that {RECORD} names; restore both files from their source")
    table = read_arrays(folder / TABLE)
    if not np.array_equal(table["index"], np.arange(len(table["index"]))):
        raise UserError(f"{folder / TABLE} does not hold the first n test examples in order; boards compare those")
    robust, robust_by = survivors(table), worst_by(table)
    contests = tuple(_read_contests(folder / CONTESTS))
    for contest in contests:
        robust &= ~np.isin(table["index"], contest.broken)
        robust_by.append(f"contest by {contest.by}")
    checked = read_checked(folder)
    if checked is not None and checked.table != examples.sha256:
        raise UserError(f"{folder / CHECKED} is about another table than {RECORD} names; restore both files")
    claimed, counted = certified(table), np.ones_like(table["clean"])
    if checked is not None:  # what was not certified again does not count
        counted = np.isin(table["index"], [*checked.proven, *checked.again])
    by_certifier = {spec: flags & counted for spec, flags in certificates(table).items() if spec != BRACKET}
    distances = {key.removeprefix("distance/"): table[key] for key in table if key.startswith("distance/")}
    return EvaluatedRun(
        folder, record, table["clean"], robust, claimed & counted, distances, contests, tuple(robust_by), checked,
        _columns(table, record, checked), by_certifier, claimed,
    )  # fmt: skip


def _columns(table: Table, record: Record, checked: Checked | None) -> dict[str, Flags]:
    """The examples that are robust to each attack; of a checked run, to each that ran again, then too."""
    columns: dict[str, Flags] = {}
    for spec in record.attacks:
        if checked is None:
            columns[spec] = table[f"robust/{spec}"]
        elif spec in checked.columns:
            columns[spec] = table[f"robust/{spec}"] & ~np.isin(table["index"], checked.columns[spec].fell)
    return columns


def read_about(path: Path) -> About:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=About)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; it describes the entry (title, paper, licence)") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a valid {ABOUT}: {error}") from error


@dataclass(frozen=True)
class Derived:
    """What the verification of a run adds to its publication.

    sanity: the worse of the record's verdict and the fresh one. contest: the examples that fell, with the bytes of
    their witnesses; None if none did.
    """

    checked: Checked
    sanity: Sanity
    contest: tuple[Contest, bytes] | None = None

    def because(self, reason: str) -> "Derived":
        """With the reason why a seed is far from the others of its entry."""
        return Derived(msgspec.structs.replace(self.checked, reason=reason), self.sanity, self.contest)


def add_run(
    results: Path, entry: str, about: About, run: Path, *, url: str | None = None, derived: Derived | None = None
) -> Path:
    """Publish a finished and verified run as one seed of an entry; returns the new folder.

    url: the public folder of its weights and witnesses; None if they are not published. derived: of its verification.
    UserError if the seed is published already, or if the entry has another recipe or another about.toml.
    """
    record = read_record(run)
    if record.suite is None:
        raise UserError(f"{run} has no suite; run it with the data, norm and eps of a suite")
    home = results / check_name(record.suite, "suite") / check_name(entry, "entry")
    folder = home / str(record.seed)
    if folder.exists():
        raise UserError(f"{folder} is published already; add a new recipe as a new entry, such as {entry}-2")
    check_seeds([record], results, entry, about)
    folder.mkdir(parents=True)
    write_atomically(home / ABOUT, msgspec.toml.encode(about))
    write_atomically(folder / TABLE, (run / TABLE).read_bytes())
    if derived is not None:
        record = msgspec.structs.replace(record, sanity=derived.sanity)
        write_checked(folder, derived.checked)
        if derived.contest is not None:
            write_contest(folder, *derived.contest)
    write_record(folder, msgspec.structs.replace(record, artifacts=_published(record, url)))
    return folder


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


def write_contest(folder: Path, contest: Contest, witnesses: bytes) -> None:
    """A contest of the verifier itself, whose witnesses lie beside it."""
    (folder / CONTESTS).mkdir(exist_ok=True)
    write_atomically(folder / CONTESTS / str(contest.witnesses.path), witnesses)
    path = folder / CONTESTS / f"{contest.witnesses.sha256[:12]}.json"
    write_atomically(path, msgspec.json.format(msgspec.json.encode(contest)) + b"\n")


def add_contest(results: Path, suite: str, entry: str, seed: int, contest: Contest) -> Path:
    """Store a verified contest beside the run whose accuracy it lowers; returns the new file."""
    run = results / check_name(suite, "suite") / check_name(entry, "entry") / str(seed)
    path = run / CONTESTS / f"{contest.witnesses.sha256[:12]}.json"
    if path.exists():
        raise UserError(f"{path} exists already; these witnesses have been counted")
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(contest)) + b"\n")
    return path


def _read_contests(folder: Path) -> Iterator[Contest]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=Contest)
        except msgspec.MsgspecError as error:
            raise UserError(f"{path} is not a valid contest: {error}") from error


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
