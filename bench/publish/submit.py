"""`bench submit`: a finished run becomes a published entry if it passes every check.

Not trusted: the run's files and all that its record claims. They are checked statically first, then verified with
model and data set; all that is published is derived again (examine.py). Trusted: this package, its data sets, and code
that the user names with --trust-code after reading it. No other code of a submission is imported.
"""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch

from bench.core.errors import CheckError, UserError
from bench.core.record_files import find_records, write_record
from bench.core.records import Record
from bench.datasets.arrays import Arrays
from bench.models.build import build_model
from bench.publish import static_checks
from bench.publish.copies import copies_among
from bench.publish.examine import Examined, compare_published, examine, settings_for
from bench.publish.fetch_artifacts import OpenUrl, download, open_https
from bench.publish.names import check_names
from bench.publish.ownership import check_maintainers, check_seeds_alike
from bench.publish.published_seed import read_published_seed
from bench.publish.static_checks import ARTIFACTS, WEIGHTS
from bench.publish.untrusted_files import errors_as_one_line, printable
from bench.verify.inputs import Settings, load_data
from bench.verify.report import Finding, findings_table
from leaderboard.published_results import (
    ABOUT,
    About,
    EvaluatedRun,
    add_run,
    check_seeds,
    read_entries,
    write_contest,
)
from leaderboard.texts import check_line


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run, or a folder with all seeds of a recipe, for results/SUITE/ENTRY.

    about: None reads the about.toml beside the run. artifacts_url: an https folder that will serve the files of seed S
    under S/; None if they will not be public. seed: of the verification; None takes one from the weights of each run.
    author: who opened the pull request; None if there is none. reason: why a seed is far from the others of its entry.
    contests: a folder to which a check writes the contests that a pull request lacks.
    """

    run: Path
    entry: str
    results: Path
    about: About | None = None
    artifacts_url: str | None = None
    seed: int | None = None
    author: str | None = None
    reason: str | None = None
    contests: Path | None = None


def submit_runs(
    submission: Submission, settings: Settings, *, check_only: bool = False, fetch: bool = False,
    open_url: OpenUrl = open_https,
) -> None:  # fmt: skip
    """Verify the runs of a submission and publish all of them, or none.

    fetch: download the files that a record names by an address. UserError if it is not a valid submission, before any
    model is built; CheckError, with the findings against it, if it is refused.
    """
    entry, results = submission.entry, submission.results
    folders = find_records([submission.run])
    if submission.artifacts_url is not None:
        static_checks.check_url(submission.artifacts_url)
    if settings.sample == 0:
        raise UserError("a submission is attacked again; give --sample at least 1")
    check_line(submission.reason or "", "the reason")
    about = _about_of(submission, folders[0])
    if about is None and not check_only:
        raise UserError("an entry needs a title, a paper and a licence; give --title, --paper and --licence")
    records = [static_checks.check_submission(folder, results, entry) for folder in folders]
    suite = str(records[0].suite)
    check_names(results, suite, entry, about)
    check_maintainers(results / suite / entry, about, submission.author)
    check_seeds(records, results, entry, about)
    examined, objections = [], []
    for folder, record in zip(folders, records, strict=True):
        check_code(record, settings)
        with _complete(folder, record, fetch, open_url) as complete:
            with errors_as_one_line(str(folder)):
                data = load_data(record, None, settings)
                check_size(complete / WEIGHTS, record.model, data)
            examined.append(examine(complete, record, data, settings_for(record, settings, submission.seed)))
        objections += examined[-1].objections
        if record.artifacts["weights"].path is None:  # a pull request brings what was derived
            objections += _of_pull_request(submission, folder, record, examined[-1])
        _print_report(folder, examined[-1].findings)
    published = read_entries(results, suite)
    own = [run for each in published if each.name == entry for run in each.runs]
    objections += _copies(submission, records, examined, {each.name: each.runs for each in published})
    if objections:
        more = f"; and {len(objections) - 3} more" if len(objections) > 3 else ""
        raise CheckError(printable(f"refused: {'; '.join(objections[:3])}{more}"))
    accuracies = {record.seed: _accuracies(record, each) for record, each in zip(records, examined, strict=True)}
    check_seeds_alike(accuracies, own, records[0].n_examples, submission.reason)
    seeds = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
    if check_only or about is None:
        print(f"{entry}: {seeds} would be accepted")
        return
    _publish(submission, about, folders, examined)
    print(f"{entry}: {seeds} added\n\n{pull_request(results / suite / entry)}")
    if submission.artifacts_url is None and any(record.artifacts["weights"].url is None for record in records):
        print("\nNobody else can check it: publish weights and witnesses, and name their folder with --artifacts.")


def _print_report(folder: Path, report: Sequence[Finding]) -> None:
    lines = findings_table([Finding(printable(f.name), f.outcome, printable(f.evidence)) for f in report])
    print(f"{printable(str(folder))}\n{lines}\n")


def _accuracies(record: Record, examined: Examined) -> tuple[float, float]:
    """Clean, and under attack with what fell in the verification."""
    attacked = record.attacked
    fell = 0 if examined.derived.contest is None else len(examined.derived.contest[0].broken)
    robust = record.clean.acc if attacked is None else attacked.robust_acc
    return record.clean.acc, robust - fell / record.n_examples


def _of_pull_request(submission: Submission, folder: Path, record: Record, examined: Examined) -> list[str]:
    """Objections to what a pull request says that was derived of a seed."""
    published, contests = read_published_seed(folder)
    contested = [example for contest in contests for example in contest.broken]
    found = examined.derived.contest
    if submission.contests is not None and found is not None and set(found[0].broken) - set(contested):
        home = submission.contests / str(record.suite) / submission.entry / str(record.seed)
        home.mkdir(parents=True, exist_ok=True)
        write_contest(home, *found)
    return compare_published(examined, published, contested, record)


def _copies(
    submission: Submission, records: Sequence[Record], examined: Sequence[Examined],
    published: dict[str, tuple[EvaluatedRun, ...]],
) -> list[str]:  # fmt: skip
    """Pairs of the same network, of which one is new."""
    new = {
        f"{submission.entry}/{record.seed}": each.derived.checked.fingerprint
        for record, each in zip(records, examined, strict=True)
    }
    known = {
        f"{name}/{run.record.seed}": run.checked.fingerprint
        for name, runs in published.items()
        for run in runs
        if run.checked is not None
    }
    files = {run.record.artifacts["weights"].sha256: name for name, runs in published.items() for run in runs}
    same = [
        f"the weights of seed {record.seed} are those of entry {files[record.artifacts['weights'].sha256]}"
        for record in records
        if record.artifacts["weights"].sha256 in files
    ]
    return same + [line for line in copies_among(known | new) if any(name in line.split()[:3:2] for name in new)]


def _about_of(submission: Submission, folder: Path) -> About | None:
    """The description from the options, else from the about.toml beside the run, if there is one."""
    if submission.about is not None:
        static_checks.check_about(submission.about)
        return submission.about
    path = folder.parent / ABOUT
    return static_checks.read_submitted_about(path) if path.exists() else None


def check_code(record: Record, settings: Settings) -> None:
    """UserError if a run used code that the user has not named with --trust-code."""
    hashes = set(map(str, record.config.get("code") or ())) - set(settings.trusted.values())
    heads = {spec.partition(":")[0] for spec in (record.model, *record.attacks, *record.certifiers)}
    paths = {head for head in heads if head.endswith(".py") and Path(head).resolve() not in settings.trusted}
    if hashes or paths:
        missing = min(paths) if paths else f"the file with the hash {min(hashes)[:12]}"
        raise UserError(printable(f"the run used code: {missing}; read it, then name it with --trust-code FILE"))


@contextmanager
def _complete(folder: Path, record: Record, fetch: bool, open_url: OpenUrl) -> Iterator[Path]:
    """The run's folder, or a temporary copy to which the files with an address are downloaded."""
    remote = {name: file for name, file in record.artifacts.items() if file.path is None}
    if not remote:
        yield folder
        return
    for name, file in remote.items():
        if file.url is None:
            raise UserError(f"the {name} of {folder} are missing: the record names neither a file nor an address")
    if not fetch:
        raise UserError(f"the {' and '.join(remote)} of {folder} are not in it; give --fetch to download them")
    with TemporaryDirectory(prefix="bench-submit-") as temporary:
        copy = shutil.copytree(folder, Path(temporary) / "run")
        for name, file in remote.items():
            download(file, copy / ARTIFACTS[name], open_url)
        local = {name: msgspec.structs.replace(file, path=ARTIFACTS[name]) for name, file in record.artifacts.items()}
        write_record(copy, msgspec.structs.replace(record, artifacts=local))
        with errors_as_one_line(str(folder)):
            static_checks.check_weights_file(copy / WEIGHTS)
            static_checks.check_witness_file(copy / ARTIFACTS["witnesses"])
        yield copy


def check_size(weights: Path, model: str, data: Arrays) -> None:
    """UserError if the architecture has more numbers than the file has bytes: building it might exhaust the memory."""
    if ".py" in model:  # trusted code
        return
    with torch.device("meta"):  # allocates no memory
        numbers = sum(tensor.numel() for tensor in build_model(model, data.shape, data.classes).state_dict().values())
    if numbers > weights.stat().st_size:
        raise UserError(f"{weights.name} is too small to hold the {numbers} numbers of {model}")


def _publish(submission: Submission, about: About, folders: Sequence[Path], examined: Sequence[Examined]) -> None:
    """Add all folders; if one fails, remove those already added."""
    added: list[Path] = []
    try:
        for run, each in zip(folders, examined, strict=True):
            derived = each.derived
            if submission.reason is not None:
                derived = derived.because(submission.reason)
            folder = add_run(
                submission.results, submission.entry, about, run, url=submission.artifacts_url, derived=derived
            )
            added.append(folder)
    except BaseException:
        for folder in added:
            shutil.rmtree(folder)
        raise


def pull_request(home: Path) -> str:
    """The git commands for a pull request with the new files of an entry's folder."""
    suite, entry = home.parts[-2:]
    return f"""For a pull request:
    git switch -c results-{suite}-{entry}
    git add {shlex.quote(str(home))}
    git commit -m 'Results of {entry} on {suite}'
    git push -u origin results-{suite}-{entry}"""
