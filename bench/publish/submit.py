"""`bench submit`: a finished run becomes a published entry if it passes every check.

Not trusted: the run's files and all that its record claims. They are checked statically first, then verified with
model and data set; claimed-robust examples are attacked again with a random seed. Trusted: this package, its data
sets, and code that the user names with --trust-code after reading it. No other code of a submission is imported.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import nn

from bench.core import files
from bench.core.config import get_suite
from bench.core.errors import CheckError, UserError
from bench.core.record_files import find_records, write_record
from bench.core.record_verdict import results_of
from bench.core.records import Record
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.models.build import build_model
from bench.publish import static_checks
from bench.publish.fetch_artifacts import OpenUrl, download, open_https
from bench.publish.private_copy import private_copies
from bench.publish.static_checks import ARTIFACTS, WEIGHTS
from bench.publish.untrusted_files import check_url, errors_as_one_line, printable
from bench.sanity.verdict import form_verdict
from bench.verify.leakage import LEAK_CHECKS
from bench.verify.report import Finding, add_findings, findings_table
from bench.verify.run import Settings, load_data, load_model, verify
from leaderboard.published_results import ABOUT, About, add_runs, check_seeds, is_published


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run, or a folder with all seeds of a recipe, for results/SUITE/ENTRY.

    about: None reads the about.toml beside the run. artifacts_url: an https folder that will serve the files of seed S
    under S/; None if they will not be public.
    """

    run: Path
    entry: str
    results: Path
    about: About | None = None
    artifacts_url: str | None = None


def submit_runs(
    submission: Submission, settings: Settings, *, check_only: bool = False, fetch: bool = False,
    open_url: OpenUrl = open_https,
) -> None:  # fmt: skip
    """Verify the runs of a submission and publish all of them, or none.

    fetch: download the files that a record names by an address. UserError if it is not a valid submission, before any
    model is built; CheckError, with the findings against it, if it is refused.
    """
    folders = find_records([submission.run])
    if submission.artifacts_url is not None:
        check_url(submission.artifacts_url)
    if not settings.sample:
        raise UserError("a submission is attacked again; give --sample at least 1")
    about = _about_of(submission, folders[0])
    if about is None and not check_only:
        raise UserError("an entry needs a title, a paper and a licence; give --title, --paper and --licence")
    static_checks.check_whole(folders)
    with private_copies(folders) as copies:
        records = _verify(submission, about, dict(zip(copies, folders, strict=True)), settings, fetch, open_url)
        seeds = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
        if check_only or about is None:
            print(f"{submission.entry}: {seeds} would be accepted")
            return
        home = add_runs(submission.results, submission.entry, about, copies, url=submission.artifacts_url)
    print(f"{submission.entry}: {seeds} added\n\n{pull_request(home)}")
    if submission.artifacts_url is None and any(record.artifacts["weights"].url is None for record in records):
        print("\nNobody else can check it: publish weights and witnesses, and name their folder with --artifacts.")


def _verify(
    submission: Submission, about: About | None, runs: Mapping[Path, Path], settings: Settings, fetch: bool,
    open_url: OpenUrl,
) -> list[Record]:  # fmt: skip
    """The records of the runs (copy -> original), verified as one submission; downloads go into the copies."""
    entry, results = submission.entry, submission.results
    records = [static_checks.check_submission(copy, results, entry) for copy in runs]
    new = [record for record in records if not is_published(results / str(record.suite) / entry, record)]
    if new:
        check_seeds(new, results, entry, about)
    objections = []
    for (copy, folder), record in zip(runs.items(), records, strict=True):
        check_code(record, settings)
        _complete(copy, record, fetch, open_url)
        with errors_as_one_line(str(folder)):
            data = load_data(record, None, settings)
            check_size(copy / WEIGHTS, record.model, data)
            most = record.n_examples * (1 + len(record.attacks))  # one of each example and threat model
            static_checks.check_witness_number(copy / ARTIFACTS["witnesses"], data.shape, most)
        report = [*verify(copy, settings), *_board_findings(copy, record, data, settings)]
        lines = findings_table([Finding(printable(f.name), f.outcome, printable(f.evidence)) for f in report])
        print(f"{printable(str(folder))}\n{lines}\n")
        objections += _objections(report, record)
    if objections:
        more = f"; and {len(objections) - 3} more" if len(objections) > 3 else ""
        raise CheckError(printable(f"refused: {'; '.join(objections[:3])}{more}"))
    return records


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


def _board_findings(folder: Path, record: Record, data: Arrays, settings: Settings) -> list[Finding]:
    """What a board requires beyond `bench verify`: enough examples, the right size, a repeatable verdict."""
    needed = get_suite(record.suite or "").board_examples or len(data.y_test)
    evidence = f"{record.n_examples}; the board needs the first {needed}"
    report = [Finding("examples", "failed" if record.n_examples < needed else "passed", evidence)]

    def check_model() -> list[Finding]:
        model = load_model(folder / WEIGHTS, record, data, settings)
        count = sum(p.numel() for p in model.parameters())
        evidence = f"the model has {count}, the record says {record.parameters}"
        parameters = Finding("parameters", "passed" if record.parameters in (None, count) else "failed", evidence)
        return [parameters, _repeat_verdict(folder, record, model, data, settings)]

    add_findings(report, ["parameters", "sanity"], check_model)
    return report


def _repeat_verdict(folder: Path, record: Record, model: nn.Module, data: Arrays, settings: Settings) -> Finding:
    """The sanity verdict, formed again with the seed of the settings."""
    test = Split.test(data, settings.device, record.n_examples)
    table = files.read_arrays(folder / ARTIFACTS["examples"])
    size = get_suite(record.suite or "").eval_batch
    threat, claimed = ThreatModel.from_record(record.threat), record.sanity.verdict
    sanity = form_verdict(
        model.eval(), test, threat, table, seed=settings.seed, batch_size=size, results=results_of(record)
    )
    evidence = f"seed {settings.seed}: {'; '.join([sanity.verdict, *sanity.reasons])}"
    if sanity.verdict == "unreliable":
        return Finding("sanity", "failed", f"{evidence}: its accuracy is not a bound")
    return Finding("sanity", "warning" if sanity.verdict != claimed else "passed", f"{evidence}; the record: {claimed}")


def _objections(report: Sequence[Finding], record: Record) -> list[str]:
    """Findings that refuse a submission: failed checks, weak attacks, and required checks that could not be made.

    Not required: the leakage checks, which need many examples, and repeating a probabilistic certificate.
    """
    probabilistic = [spec for spec, result in record.certifiers.items() if result.kind == "probabilistic"]
    optional = {*LEAK_CHECKS, *(f"certified again by {spec}" for spec in probabilistic)}
    return [
        f"{each.name}{' not checkable' if each.outcome == 'not checkable' else ''}: {each.evidence}"
        for each in report
        if each.outcome in ("failed", "weaker") or (each.outcome == "not checkable" and each.name not in optional)
    ]


def pull_request(home: Path) -> str:
    """The git commands for a pull request with the new files of an entry's folder."""
    suite, entry = home.parts[-2:]
    return f"""For a pull request:
    git switch -c results-{suite}-{entry}
    git add {shlex.quote(str(home))}
    git commit -m 'Results of {entry} on {suite}'
    git push -u origin results-{suite}-{entry}"""
