"""Publishes verified runs as seeds of an entry, with the results that their verification derived."""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.core.errors import UserError
from bench.core.folders import changed_in_one_step
from bench.core.record_files import RECORD, read_record, write_record
from bench.core.records import Artifact, Record, Sanity
from leaderboard.published_results import ABOUT, About, Contest, check_name, read_about, suite_folder, write_contest
from leaderboard.verification_files import Checked, write_checked


@dataclass(frozen=True)
class VerifiedResults:
    """The results of a run's verification that are published with it.

    sanity: the worse of the record's verdict and the new one. contest: the examples that the verification broke, with
    the bytes of their witnesses; None if there are none.
    """

    checked: Checked
    sanity: Sanity
    contest: tuple[Contest, bytes] | None = None

    def with_reason(self, reason: str) -> "VerifiedResults":
        """Add the reason why a seed is far from the others of its entry."""
        return VerifiedResults(msgspec.structs.replace(self.checked, reason=reason), self.sanity, self.contest)


def add_runs(
    results: Path, entry: str, about: About, runs: Sequence[Path], *, url: str | None = None,
    with_files: Collection[int] = (), derived: Sequence[VerifiedResults] = (),
) -> Path:  # fmt: skip
    """Publish finished and verified runs as seeds of an entry, all or none in one step; returns the entry's folder.

    url: the public folder of its weights and witnesses; None if they are not published. with_files: the seeds whose
    weights, witnesses and proofs are copied into the entry. derived: the results of each run's verification. Seeds that
    are already published identically stay unchanged. UserError if one is published with other content, or if the entry
    has another recipe or another about.toml.
    """
    records, found = {run: read_record(run) for run in runs}, dict(zip(runs, derived, strict=False))
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
            copied = {"examples"} if record.seed not in with_files else set(record.artifacts)
            for name in copied:
                file = str(record.artifacts[name].path)
                shutil.copyfile(run / file, folder / file)
            published = msgspec.structs.replace(record, artifacts=_published(record, url, copied))
            if run in found:
                published = msgspec.structs.replace(published, sanity=found[run].sanity)
                write_checked(folder, found[run].checked)
                if (contest := found[run].contest) is not None:
                    write_contest(folder, *contest)
            write_record(folder, published)
    return home


def is_published(home: Path, record: Record) -> bool:
    """Whether the entry in `home` has exactly this run; UserError if it has another run of the seed."""
    folder = home / str(record.seed)
    if not folder.exists():
        return False
    published = msgspec.structs.replace(read_record(folder), artifacts={}, sanity=record.sanity)  # may be the worse one
    hashes = [{name: file.sha256 for name, file in r.artifacts.items()} for r in (read_record(folder), record)]
    if hashes[0] == hashes[1] and published == msgspec.structs.replace(record, artifacts={}):
        return True
    raise UserError(f"{folder} is published already; add a new recipe as a new entry, such as {home.name}-2")


def check_seeds(records: Sequence[Record], results: Path, entry: str, about: About | None) -> None:
    """UserError unless the runs and the entry's published ones are different trainings of one recipe.

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


def _published(record: Record, url: str | None, copied: Collection[str]) -> dict[str, Artifact]:
    """The artifacts of a run. All but the copied ones get an address below `url`, if it is given, instead of a path."""

    def moved(file: Artifact) -> Artifact:
        name = Path(file.path or file.url or "").name
        address = file.url if url is None else f"{url.rstrip('/')}/{record.seed}/{name}"
        return msgspec.structs.replace(file, path=None, url=address)

    return {name: file if name in copied else moved(file) for name, file in record.artifacts.items()}
