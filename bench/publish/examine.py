"""Verifies a submitted run with its model and data set, and derives what the leaderboard may publish.

The run's files and the claims of its record are untrusted, although they have passed the static checks. This package,
its data sets, and code that the user names are trusted. Everything that is published about a run is derived here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from torch import nn

from bench.core import files
from bench.core.config import get_suite
from bench.core.counts import counted
from bench.core.example_table import survivors
from bench.core.record_files import WEIGHTS
from bench.core.record_verdict import results_of, with_findings
from bench.core.records import VERDICTS, Artifact, Record, Sanity, Size
from bench.core.spec_text import split_spec
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.publish.command import check_command
from bench.publish.copied_networks import COPY
from bench.publish.imitated_names import VERIFIER
from bench.publish.static_checks import ARTIFACTS
from bench.sanity.verdict import form_verdict
from bench.training.model_size import size_of
from bench.verify.attack_again import BrokenExamples, run_again
from bench.verify.fingerprint import distance
from bench.verify.inputs import Settings, load_model, spec_of
from bench.verify.leakage import LEAK_CHECKS
from bench.verify.memorised import TEST_ABOVE_TRAIN
from bench.verify.repeat import METHODS
from bench.verify.report import Finding, Outcome, add_findings
from bench.verify.run import Verified, verify
from leaderboard.published_results import Contest
from leaderboard.publishing import VerifiedResults
from leaderboard.recheck.run import SOLVERS, recheck
from leaderboard.verification_files import Checked, RepeatedAttack

PROOFS = "proofs"
DESCRIPTION_BYTES = 1024  # of a packed network, which may differ between versions
SAME_PRINT = COPY / 10  # distance of two fingerprints of one network on two machines: rounding only


@dataclass(frozen=True)
class Examined:
    """A run's findings, the objections to its publication, and the derived results."""

    findings: list[Finding]
    objections: list[str]
    derived: VerifiedResults


def seed_of(record: Record) -> int:
    """The default seed for verifying a submission, a function of its weights.

    So a maintainer repeats what the submitter saw, and another attempt with the same weights has the same outcome.
    """
    return int(record.artifacts["weights"].sha256[:8], 16) >> 1


def examine(folder: Path, record: Record, data: Arrays, settings: Settings) -> Examined:
    """Verify a complete run folder, and derive what may be published.

    All certificates are repeated, because the submitter knows the seed of a sample.
    """
    verified = verify(folder, replace(settings, every_certificate=True))
    findings = list(verified.findings)
    needed = get_suite(record.suite or "").board_examples or len(data.y_test)
    evidence = f"{record.n_examples}; the board needs the first {needed}"
    findings.append(Finding("examples", "failed" if record.n_examples < needed else "passed", evidence))
    add_findings(findings, ["command"], lambda: [check_command(record, folder, settings)])
    sanity = record.sanity

    def check_model() -> list[Finding]:
        nonlocal sanity
        model = load_model(folder / WEIGHTS, record, data, settings)
        count = sum(p.numel() for p in model.parameters())
        evidence = f"the model has {count}, the record says {record.parameters}"
        finding, sanity = _repeat_verdict(folder, record, model, data, settings)
        parameters = Finding("parameters", "passed" if record.parameters == count else "failed", evidence)
        return [parameters, _check_size(record, size_of(model, spec_of(folder / WEIGHTS))), finding]

    add_findings(findings, ["parameters", "size", "sanity"], check_model)
    proven: list[int] = []

    def check_proofs() -> list[Finding]:
        finding, found = _check_proofs(folder, data)
        proven.extend(found)
        return [finding]

    if "proofs" in record.artifacts:
        add_findings(findings, [PROOFS], check_proofs)
    weaker = with_findings(msgspec.structs.replace(record, sanity=sanity), _weaker(findings))
    derived = VerifiedResults(
        _checked(record, verified, proven, settings), weaker.sanity, _contest(folder, verified.repeated.fell)
    )
    return Examined(findings, _objections(findings, record), derived)


def _check_size(record: Record, found: Size | None) -> Finding:
    """Check the size of the network. The bytes of its description may differ between versions."""
    if record.size is None:
        return Finding("size", "passed", "the record gives none")
    same = found is not None and record.size == msgspec.structs.replace(found, bytes=record.size.bytes)
    same = same and found is not None and abs(record.size.bytes - found.bytes) <= DESCRIPTION_BYTES
    evidence = f"the model has {_size_text(found)}, the record says {_size_text(record.size)}"
    return Finding("size", "passed" if same else "failed", evidence)


def _size_text(size: Size | None) -> str:
    if size is None:
        return "no size, because it is not in float32"
    return (
        f"{size.kept:,} of {size.weights:,} weights in {size.bits:,} bits, {size.bytes:,} bytes and {size.flops:,} "
        "operations"
    )


def _weaker(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.outcome == "weaker"]


def _check_proofs(folder: Path, data: Arrays) -> tuple[Finding, list[int]]:
    """Check all proofs with the checker that shares no code with the certifiers; also return the proven examples."""
    report = recheck(folder, data.x_test, data.y_test, data.hash)
    proven = [example.index for example in report.examples if example.proof == "proven"]
    if report.failures:
        first = report.failures[0]
        reason = first.proof_reason or first.witness_reason
        return Finding(PROOFS, "failed", f"{len(report.failures)} fail, first of example {first.index}: {reason}"), []
    return Finding(
        PROOFS, "passed", f"{counted(len(proven), 'proof')} {'holds' if len(proven) == 1 else 'hold'}"
    ), proven


def _checked(record: Record, verified: Verified, proven: Sequence[int], settings: Settings) -> Checked:
    again, solver = set[int](), set[int]()
    for spec, found in verified.repeated.certificates.items():
        (solver if split_spec(spec).name in SOLVERS else again).update(found.confirmed)
    again -= set(proven)
    return Checked(
        table=record.artifacts["examples"].sha256, attack=settings.attack, seed=settings.seed,
        columns={spec: RepeatedAttack(each.attacked, each.fell) for spec, each in verified.repeated.columns.items()},
        proven=sorted(proven), again=sorted(again), solver=sorted(solver - again - set(proven)),
        fingerprint=verified.fingerprint,
    )  # fmt: skip


def _contest(folder: Path, fell: BrokenExamples) -> tuple[Contest, bytes] | None:
    """Make a contest of the broken examples that the record counts as robust; None if there are none."""
    table = files.read_arrays(folder / ARTIFACTS["examples"])
    robust = survivors(table)
    points = {i: point for i, point in fell.points.items() if robust[i]}
    if not points:
        return None
    with TemporaryDirectory(prefix="bench-witnesses-") as name:
        path = Path(name) / ARTIFACTS["witnesses"]
        files.write_arrays(path, BrokenExamples(points).arrays)
        digest, content = files.sha256(path), path.read_bytes()
    witnesses = Artifact(sha256=digest, bytes=len(content), path=f"{digest[:12]}.npz")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Contest(by=VERIFIER, broken=sorted(points), witnesses=witnesses, finished=now), content


def _repeat_verdict(
    folder: Path, record: Record, model: nn.Module, data: Arrays, settings: Settings
) -> tuple[Finding, Sanity]:
    """Form the sanity verdict again, and return the worse of it and the record's, which is published.

    If they are equal, the new one is published, because its evidence was measured here. A worse verdict is confirmed by
    a second draw, because a sound model may show a sign by chance.
    """
    test = Split.test(data, settings.device, record.n_examples)
    table = files.read_arrays(folder / ARTIFACTS["examples"])
    size = get_suite(record.suite or "").eval_batch
    threat, order = ThreatModel.from_record(record.threat), list(VERDICTS)
    draws = []
    for seed in (settings.seed, settings.seed + 1):
        draws.append(
            form_verdict(model.eval(), test, threat, table, seed=seed, batch_size=size, results=results_of(record))
        )
        if order.index(draws[-1].verdict) <= order.index(record.sanity.verdict):
            break
    fresh = min(draws, key=lambda sanity: order.index(sanity.verdict))
    worse = max(fresh, record.sanity, key=lambda sanity: order.index(sanity.verdict))
    evidence = f"seed {settings.seed}: {'; '.join([fresh.verdict, *fresh.reasons])}"
    if fresh.verdict == "unreliable":
        return Finding("sanity", "failed", f"{evidence}: its accuracy is not a bound"), worse
    outcome: Outcome = "passed" if worse.verdict == record.sanity.verdict else "warning"
    return Finding("sanity", outcome, f"{evidence}; the record: {record.sanity.verdict}"), worse


def _objections(report: Sequence[Finding], record: Record) -> list[str]:
    """Return the findings that block a submission: failed checks, and required checks that could not be made.

    The leakage checks are not required, because they need many examples. Neither is repeating a probabilistic
    certificate, or an attack whose code or library is missing (its column is not shown). A run whose attacks are weaker
    than the second attack is not blocked; its accuracy is lowered.
    """
    optional = {*LEAK_CHECKS, METHODS, *map(run_again, record.attacks), TEST_ABOVE_TRAIN[2]}
    probabilistic = [spec for spec, each in record.certifiers.items() if each.kind != "deterministic"]
    optional |= {f"certified again by {spec}" for spec in probabilistic}
    return [
        f"{each.name}{' not checkable' if each.outcome == 'not checkable' else ''}: {each.evidence}"
        for each in report
        if each.outcome == "failed" or (each.outcome == "not checkable" and each.name not in optional)
    ]


def compare_published(examined: Examined, published: Checked, contested: Sequence[int], record: Record) -> list[str]:
    """Return objections to a pull request's checked.json, which this check derives once more.

    contested: the examples that its contests list as broken.
    """
    ours, objections = examined.derived.checked, []
    contest = examined.derived.contest
    if contest is not None and (missing := sorted(set(contest[0].broken) - set(contested))):
        objections.append(f"{len(missing)} examples that it counts as robust fall, the first is {missing[0]}")
    listed: list[tuple[str, Sequence[object], Sequence[object]]] = [
        ("proven", published.proven, ours.proven),
        ("certified again", published.again, [*ours.again, *ours.proven]),
        ("certified by a solver", published.solver, [*ours.solver, *ours.again, *ours.proven]),
        ("attacks that ran again", list(published.columns), list(ours.columns)),
    ]
    for what, theirs, allowed in listed:
        if extra := set(theirs) - set(allowed):
            objections.append(f"checked.json lists {len(extra)} as {what} that the check does not confirm")
    for spec, column in ours.columns.items():
        more = set(column.fell) - set(published.columns[spec].fell if spec in published.columns else column.fell)
        if len(more) > max(2, round(0.01 * record.n_examples)):
            objections.append(f"checked.json leaves out {len(more)} examples that {spec} breaks again")
    if distance(published.fingerprint, ours.fingerprint) > SAME_PRINT:
        objections.append("checked.json has the fingerprint of another network, by which its copies would be missed")
    if published.table != ours.table or (published.attack, published.seed) != (ours.attack, ours.seed):
        objections.append("checked.json is of another table, attack or seed than the check")
    if order_of(examined.derived.sanity) > order_of(record.sanity):
        objections.append(f"its verdict is {examined.derived.sanity.verdict}, the record says {record.sanity.verdict}")
    return objections


def order_of(sanity: Sanity) -> int:
    return list(VERDICTS).index(sanity.verdict)


def settings_for(record: Record, settings: Settings, seed: int | None) -> Settings:
    return replace(settings, seed=seed_of(record) if seed is None else seed)
