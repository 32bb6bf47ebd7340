"""`bench submit`: a finished run becomes a published entry, after every check.

Code of a submission is imported only where the user named its file; all else that a run names is ours. The weights
are safetensors, the arrays hold no objects.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch
from torch import nn

from bench.core import files
from bench.core.config import get_suite
from bench.core.errors import CheckError, UserError
from bench.core.record_files import find_records, write_record
from bench.core.records import Record
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.models.build import build_model
from bench.publish.fetch_artifacts import OpenUrl, download, open_https
from bench.publish.static_checks import (
    ARTIFACTS,
    WEIGHTS,
    check_about,
    check_submission,
    check_url,
    check_weights,
    check_witnesses,
    read_submitted_about,
)
from bench.publish.untrusted_files import one_plain_line, plain
from bench.sanity.verdict import form_verdict
from bench.verify.leakage import LEAK_CHECKS
from bench.verify.report import Finding, add_findings, findings_table, read_or_report, require
from bench.verify.run import Settings, load_data, load_model, verify
from leaderboard.published_results import ABOUT, About, add_run, check_seeds


def submit(
    run: Path,
    *,
    entry: str,
    about: About | None,
    results: Path,
    settings: Settings,
    check_only: bool = False,
    fetch: bool = False,
    artifacts: str | None = None,
    open_url: OpenUrl = open_https,
) -> None:
    """Verify a run, or all seeds of a recipe below a folder, and publish them as results/SUITE/ENTRY: all or none.

    about: what the entry says of itself; None for the about.toml of a folder that is laid out as a published entry.
    fetch: download what a record names by an address. artifacts: the https folder where the files of seed S will lie
    below S/. CheckError where it is refused: what the report says against it. UserError before any model is built:
    what cannot be a submission at all.
    """
    folders = find_records([run])
    if artifacts is not None:
        check_url(artifacts)
    if not settings.sample:
        raise UserError("a submission is attacked again; give --sample at least 1")
    about = _about(folders, about, check_only)
    records = [check_submission(folder, results, entry) for folder in folders]
    check_seeds(records, results, entry, about)
    _check_layout(folders, records, entry)
    against = []
    for folder, record in zip(folders, records, strict=True):
        check_code(record, settings)
        with _complete(folder, record, fetch, open_url) as whole:
            with one_plain_line(str(folder)):
                check_size(whole / WEIGHTS, record.model, load_data(record, None, settings))
            report = [*verify(whole, settings), *_of_the_board(whole, record, settings)]
        print(f"{plain(str(folder))}\n{findings_table([_plain(finding) for finding in report])}\n")
        against += _against(report, record)
    if against:
        more = f"; and {len(against) - 3} more" if len(against) > 3 else ""
        raise CheckError(plain(f"refused: {'; '.join(against[:3])}{more}"))
    seeds = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
    if check_only or about is None:
        print(f"{entry}: {seeds} would be accepted")
        return
    _publish(results, entry, about, folders, artifacts)
    print(f"{entry}: {seeds} added\n\n{pull_request(results / str(records[0].suite) / entry)}")
    if artifacts is None and any(record.artifacts["weights"].url is None for record in records):
        print("\nNobody else can check it: publish weights and witnesses, and name their folder with --artifacts.")


def _about(folders: Sequence[Path], about: About | None, check_only: bool) -> About | None:
    if about is not None:
        check_about(about)
        return about
    beside = folders[0].parent / ABOUT
    if beside.exists():
        return read_submitted_about(beside)
    if not check_only:
        raise UserError("an entry says what it is: give --title, --paper and --licence")
    return None


def _check_layout(folders: Sequence[Path], records: Sequence[Record], entry: str) -> None:
    """UserError where a published run does not lie where it says that it belongs."""
    for folder, record in zip(folders, records, strict=True):
        place = [str(record.suite), entry, str(record.seed)]
        if record.artifacts["weights"].path is None and list(folder.resolve().parts[-3:]) != place:
            raise UserError(f"{folder} is published as {'/'.join(place)}; it must lie in a folder of that name")


def check_code(record: Record, settings: Settings) -> None:
    """UserError where a run used code that the user has not named."""
    hashes = set(map(str, record.config.get("code") or ())) - set(settings.trusted.values())
    heads = {spec.partition(":")[0] for spec in (record.model, *record.attacks, *record.certifiers)}
    paths = {head for head in heads if head.endswith(".py") and Path(head).resolve() not in settings.trusted}
    if hashes or paths:
        missing = min(paths) if paths else f"the file with the hash {min(hashes)[:12]}"
        raise UserError(plain(f"the run used code: {missing}; read it, then name it with --trust-code FILE"))


@contextmanager
def _complete(folder: Path, record: Record, fetch: bool, open_url: OpenUrl) -> Iterator[Path]:
    """The run's folder, or a temporary copy of it with the files that its record names by an address."""
    elsewhere = {name: file for name, file in record.artifacts.items() if file.path is None}
    if not elsewhere:
        yield folder
        return
    for name, file in elsewhere.items():
        if file.url is None:
            raise UserError(f"nobody can have the {name} of {folder}: the record names neither file nor address")
    if not fetch:
        raise UserError(f"the {' and '.join(elsewhere)} of {folder} lie elsewhere; give --fetch to download them")
    with TemporaryDirectory(prefix="bench-submit-") as temporary:
        copy = shutil.copytree(folder, Path(temporary) / "run")
        for name, file in elsewhere.items():
            download(file, copy / ARTIFACTS[name], open_url)
        here = {name: msgspec.structs.replace(file, path=ARTIFACTS[name]) for name, file in record.artifacts.items()}
        write_record(copy, msgspec.structs.replace(record, artifacts=here))
        with one_plain_line(str(folder)):
            check_weights(copy / WEIGHTS)
            check_witnesses(copy / ARTIFACTS["witnesses"])
        yield copy


def check_size(weights: Path, model: str, data: Arrays) -> None:
    """UserError where the architecture has more numbers than the file has bytes: building it may fill the memory."""
    if ".py" in model:  # code that the user trusts
        return
    with torch.device("meta"):  # no memory
        numbers = sum(tensor.numel() for tensor in build_model(model, data.shape, data.classes).state_dict().values())
    if numbers > weights.stat().st_size:
        raise UserError(f"{weights.name} is too small to hold the {numbers} numbers of {model}")


def _of_the_board(folder: Path, record: Record, settings: Settings) -> list[Finding]:
    """What a board asks of an entry beyond sound evidence: enough examples, and a verdict that comes out again."""
    report: list[Finding] = []
    lost: list[Finding] = []  # `verify` has reported these
    data = read_or_report(lost, "data", lambda: load_data(record, None, settings))
    model = read_or_report(lost, "model", lambda: load_model(folder / WEIGHTS, record, require(data, "data"), settings))
    add_findings(report, ["examples"], lambda: [_check_examples(record, require(data, "data"))])
    add_findings(report, ["parameters"], lambda: [_check_parameters(record, require(model, "model"))])
    again = partial(_judge_again, folder, record, settings=settings)
    add_findings(report, ["sanity"], lambda: [again(require(model, "model"), require(data, "data"))])
    return report


def _check_examples(record: Record, data: Arrays) -> Finding:
    needed = get_suite(record.suite or "").board_examples or len(data.y_test)
    if record.n_examples < needed:
        return Finding("examples", "failed", f"{record.n_examples}; the board needs the first {needed}")
    return Finding("examples", "passed", f"{record.n_examples}, of which the board needs {needed}")


def _check_parameters(record: Record, model: nn.Module) -> Finding:
    counted = sum(p.numel() for p in model.parameters())
    if record.parameters not in (None, counted):
        return Finding("parameters", "failed", f"the model has {counted}, the record says {record.parameters}")
    return Finding("parameters", "passed", f"{counted}")


def _judge_again(folder: Path, record: Record, model: nn.Module, data: Arrays, settings: Settings) -> Finding:
    """The sanity verdict of a fresh look: no better than the record's?"""
    n, claimed = record.n_examples, record.sanity.verdict
    test = Split.test(data, settings.device, n)
    table = files.read_arrays(folder / ARTIFACTS["examples"])
    size = get_suite(record.suite or "").eval_batch
    threat = ThreatModel.from_record(record.threat)
    found = form_verdict(model.eval(), test, threat, table, seed=settings.seed, batch_size=size)
    evidence = f"seed {settings.seed}: {'; '.join([found.verdict, *found.reasons])}"
    if found.verdict == "unreliable":
        return Finding("sanity", "failed", f"{evidence}: its accuracy is no bound")
    return Finding("sanity", "warning" if found.verdict != claimed else "passed", f"{evidence}; the record: {claimed}")


def _against(report: Sequence[Finding], record: Record) -> list[str]:
    """What speaks against an entry: what failed, and what cannot be checked although it must be.

    A leak needs many examples to show, and a certificate of random draws need not come out again.
    """
    drawn = [spec for spec, proof in record.certifiers.items() if proof.kind == "probabilistic"]
    excused = {*LEAK_CHECKS, *(f"certified again by {spec}" for spec in drawn)}
    return [
        f"{each.name}: {each.evidence}" if each.outcome == "failed" else f"{each.name} not checkable: {each.evidence}"
        for each in report
        if each.outcome == "failed" or (each.outcome == "not checkable" and each.name not in excused)
    ]


def _plain(finding: Finding) -> Finding:
    return Finding(plain(finding.name), finding.outcome, plain(finding.evidence))


def _publish(results: Path, entry: str, about: About, folders: Sequence[Path], url: str | None) -> None:
    """Add all folders, or leave nothing of them behind."""
    added: list[Path] = []
    try:
        for folder in folders:
            added.append(add_run(results, entry, about, folder, url=url))  # noqa: PERF401 (kept, should the next fail)
    except BaseException:
        for folder in added:
            shutil.rmtree(folder)
        raise


def pull_request(home: Path) -> str:
    """What to type for a pull request with what is new below `home`."""
    branch = f"results-{home.parent.name}-{home.name}"
    return "\n".join([
        "For a pull request:",
        f"    git switch -c {branch}",
        f"    git add {shlex.quote(str(home))}",
        f"    git commit -m 'Results of {home.name} on {home.parent.name}'",
        f"    git push -u origin {branch}",
    ])  # fmt: skip
