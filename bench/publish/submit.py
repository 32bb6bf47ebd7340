"""`bench submit`: a finished run becomes a published entry if it passes every check.

The run's files and the claims of its record are untrusted. They are checked statically first, then verified with model
and data set; all published values are derived again (examine.py). This package, its data sets, and code that the user
names with --trust-code after reading it are trusted. No other code of a submission is imported.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from bench.core.counts import counted
from bench.core.errors import CheckError, UserError
from bench.core.record_files import WEIGHTS, find_records, write_record
from bench.core.records import Record
from bench.datasets.arrays import Arrays
from bench.models.build import build_model
from bench.publish import static_checks
from bench.publish.board_rules import check_additional_data
from bench.publish.copied_networks import copies_among
from bench.publish.examine import Examined, compare_published, examine, settings_for
from bench.publish.fetch_artifacts import OpenUrl, download, open_https
from bench.publish.imitated_names import check_names
from bench.publish.ownership import check_maintainers, check_seeds_alike
from bench.publish.private_copy import private_copies
from bench.publish.published_seed import read_published_seed
from bench.publish.static_checks import ARTIFACTS
from bench.publish.untrusted_files import check_url, errors_as_one_line, printable
from bench.verify.inputs import Settings, load_data
from bench.verify.report import Finding, findings_table
from leaderboard.published_results import (
    ABOUT,
    About,
    EvaluatedRun,
    read_entries,
    results_folder,
    suite_folder,
    write_contest,
)
from leaderboard.publishing import add_runs, check_seeds, is_published
from leaderboard.untrusted_text import check_line
from leaderboard.verification_files import read_reproduction


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run, or a folder with all seeds of a recipe, for results/SUITE/ENTRY.

    about: None reads the about.toml beside the run. artifacts_url: an https folder that will serve the files of seed S
    under S/; None if they will not be public. with_files: the seeds whose weights, witnesses and proofs are copied into
    the entry. seed: of the verification; None derives it from the weights of each run.
    author: who opened the pull request; None if there is none. reason: why a seed is far from the others of its entry.
    contests: a folder to which a check writes the contests that a pull request lacks.
    """

    run: Path
    entry: str
    results: Path
    about: About | None = None
    artifacts_url: str | None = None
    with_files: tuple[int, ...] = ()
    seed: int | None = None
    author: str | None = None
    reason: str | None = None
    contests: Path | None = None


def submit_runs(
    submission: Submission, settings: Settings, *, check_only: bool = False, fetch: bool = False,
    open_url: OpenUrl = open_https,
) -> None:  # fmt: skip
    """Verify the runs of a submission and publish all of them, or none.

    fetch: download the files that a record refers to by an address. UserError if it is not a valid submission, before
    any model is built; CheckError, with the findings against it, if it is refused.
    """
    folders = find_records([submission.run], strict=True)
    if submission.artifacts_url is not None:
        check_url(submission.artifacts_url)
    if settings.sample == 0:
        raise UserError("a submission is attacked again; give --sample at least 1")
    check_line(submission.reason or "", "the reason")
    about = _about_of(submission, folders[0])
    if about is None and not check_only:
        raise UserError("an entry needs a title, a paper and a licence; give --title, --paper and --licence")
    static_checks.check_whole(folders)
    with private_copies(folders) as copies:
        records, examined = _verify(
            submission, about, dict(zip(copies, folders, strict=True)), settings, fetch, open_url
        )
        seeds = counted(len(folders), "seed")
        if check_only or about is None:
            print(f"{submission.entry}: {seeds} would be accepted")
            return
        reason, derived = submission.reason, [each.derived for each in examined]
        derived = derived if reason is None else [each.with_reason(reason) for each in derived]
        home = add_runs(
            submission.results, submission.entry, about, copies, url=submission.artifacts_url,
            with_files=submission.with_files, derived=derived,
        )  # fmt: skip
    print(f"{submission.entry}: {seeds} added\n\n{pull_request(home)}")
    nowhere = submission.artifacts_url is None and not submission.with_files
    if nowhere and any(record.artifacts["weights"].url is None for record in records):
        print("\nNobody else can check it: give --with-files SEED to add its weights, or --artifacts URL of a folder.")
    if records[0].training is not None and read_reproduction(home) is None:
        place = f"{records[0].suite}/{submission.entry}"
        where = "" if submission.results == results_folder() else f" --results {shlex.quote(str(submission.results))}"
        print(
            "\nA recipe has a rank once a maintainer of the board has trained it again:\n"
            f"    bench submit RUNS --reproduces {place} --by NAME{where}"
        )


def _verify(
    submission: Submission, about: About | None, runs: Mapping[Path, Path], settings: Settings, fetch: bool,
    open_url: OpenUrl,
) -> tuple[list[Record], list[Examined]]:  # fmt: skip
    """Examine the runs (copy -> original) as one submission; downloads go into the copies."""
    entry, results = submission.entry, submission.results
    records = [static_checks.check_submission(copy, results, entry) for copy in runs]
    suite = str(records[0].suite)
    home = suite_folder(results, suite) / entry
    check_names(results, suite, entry, about, submission.author)
    check_maintainers(home, about, submission.author)
    if about is not None:
        check_additional_data(records, about)
    new = [record for record in records if not is_published(home, record)]
    if new:
        check_seeds(new, results, entry, about)
    examined: list[Examined] = []
    objections: list[str] = []
    for (copy, folder), record in zip(runs.items(), records, strict=True):
        if submission.author is not None and not static_checks.is_published_form(copy, record):
            raise UserError(f"{folder} is a run folder; publish it with `bench submit`, and add what that writes")
        check_code(record, settings)
        _complete(copy, record, fetch, open_url)
        with errors_as_one_line(str(folder)):
            data = load_data(record, None, settings)
            check_size(copy / WEIGHTS, record.model, data)
            most = record.n_examples * (1 + len(record.attacks))  # one of each example and threat model
            static_checks.check_witness_number(copy / ARTIFACTS["witnesses"], data.shape, most)
        examined.append(examine(copy, record, data, settings_for(record, settings, submission.seed)))
        objections += examined[-1].objections
        if static_checks.is_published_form(copy, record):  # a pull request brings what was derived
            objections += _of_pull_request(submission, copy, record, examined[-1])
        _print_report(folder, examined[-1].findings)
    published = {each.name: each.runs for each in read_entries(results, suite)[0]}
    objections += _copies(submission, records, examined, published)
    if objections:
        more = f"; and {len(objections) - 3} more" if len(objections) > 3 else ""
        raise CheckError(printable(f"refused: {'; '.join(objections[:3])}{more}"))
    accuracies = {record.seed: _accuracies(record, each) for record, each in zip(records, examined, strict=True)}
    own = [run for run in published.get(entry, ()) if run.record.seed not in accuracies]
    check_seeds_alike(accuracies, own, records[0].n_examples, submission.reason)
    return records, examined


def _print_report(folder: Path, report: Sequence[Finding]) -> None:
    lines = findings_table([Finding(printable(f.name), f.outcome, printable(f.evidence)) for f in report])
    print(f"{printable(str(folder))}\n{lines}\n")


def _accuracies(record: Record, examined: Examined) -> tuple[float, float]:
    """Return the clean accuracy, and that under attack, lowered by the examples that broke in the verification."""
    attacked = record.attacked
    fell = 0 if examined.derived.contest is None else len(examined.derived.contest[0].broken)
    robust = record.clean.acc if attacked is None else attacked.robust_acc
    return record.clean.acc, robust - fell / record.n_examples


def _of_pull_request(submission: Submission, folder: Path, record: Record, examined: Examined) -> list[str]:
    """Return objections to the checked.json of a seed in a pull request."""
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
    """Return the pairs of the same network in which at least one is new."""
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
    files = {
        run.record.artifacts["weights"].sha256: name
        for name, runs in published.items()
        for run in runs
        if name != submission.entry
    }
    same = [
        f"the weights of seed {record.seed} are those of entry {files[record.artifacts['weights'].sha256]}"
        for record in records
        if record.artifacts["weights"].sha256 in files
    ]
    return same + [line for line in copies_among(known | new) if any(name in line.split()[:3:2] for name in new)]


def _about_of(submission: Submission, folder: Path) -> About | None:
    """Return the description from the options, else from the about.toml beside the run, if there is one."""
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


def _complete(folder: Path, record: Record, fetch: bool, open_url: OpenUrl) -> None:
    """Download the files that the record names by an address into the private copy of the run."""
    remote = {name: file for name, file in record.artifacts.items() if file.path is None}
    if not remote:
        return
    for name, file in remote.items():
        if file.url is None:
            raise UserError(f"the {name} of {folder} are missing: the record names neither a file nor an address")
    if not fetch:
        raise UserError(f"the {' and '.join(remote)} of {folder} are not in it; give --fetch to download them")
    for name, file in remote.items():
        download(file, folder / ARTIFACTS[name], open_url)
    local = {name: msgspec.structs.replace(file, path=ARTIFACTS[name]) for name, file in record.artifacts.items()}
    write_record(folder, msgspec.structs.replace(record, artifacts=local))
    with errors_as_one_line(str(folder)):
        static_checks.check_weights_file(folder / WEIGHTS)
        static_checks.check_witness_file(folder / ARTIFACTS["witnesses"])


def check_size(weights: Path, model: str, data: Arrays) -> None:
    """UserError if the architecture has more numbers than the file has bytes: building it might exhaust the memory."""
    if ".py" in model:  # trusted code
        return
    with torch.device("meta"):  # allocates no memory
        numbers = sum(tensor.numel() for tensor in build_model(model, data.shape, data.classes).state_dict().values())
    if numbers > weights.stat().st_size:
        raise UserError(f"{weights.name} is too small to hold the {numbers} numbers of {model}")


def pull_request(home: Path) -> str:
    """The git commands for a pull request with the new files of an entry's folder; its path if it is in no repository.

    A repository is not searched for by git, which need not be installed.
    """
    suite, entry = home.parts[-2:]
    if not any((folder / ".git").exists() for folder in home.resolve().parents):
        return f"written: {home} (it is in no git repository; for a pull request, use a clone and its --results)"
    return f"""For a pull request:
    git switch -c results-{suite}-{entry}
    git add {shlex.quote(str(home))}
    git commit -m 'Results of {entry} on {suite}'
    git push -u origin results-{suite}-{entry}"""
