"""`bench verify`: checks the evidence of a finished run again, from its files, its data set and its model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from bench.core import files, record_files
from bench.core.attack_specs import make_attacks
from bench.core.config import CORRUPTIONS, content_hash
from bench.core.errors import UserError
from bench.core.example_table import Flags, Table, certified, survivors
from bench.core.progress import Progress
from bench.core.proof_format import proofs_from
from bench.core.record_checks import check_record
from bench.core.record_command import absent_files, give_code
from bench.core.record_files import WEIGHTS
from bench.core.records import Record
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.evaluate.certified import make_certifiers
from bench.evaluate.context import EvalContext
from bench.verify.attack_again import run_again
from bench.verify.claims import CLAIMS, check_claims, read_proofs
from bench.verify.corrupted_again import CORRUPTED_AGAIN, check_corruptions
from bench.verify.description_check import DESCRIPTION, check_description
from bench.verify.fingerprint import fingerprint
from bench.verify.inputs import Settings, eval_batch, load_data, load_model, make_context, read_table, spec_of
from bench.verify.leakage import LEAK_CHECKS, check_leakage
from bench.verify.memorised import TEST_ABOVE_TRAIN, check_memorised
from bench.verify.repeat import (
    METHODS,
    Repeated,
    certifiers_of,
    certifying_specs,
    check_methods,
    repeat_attack,
    repeat_certifier,
    repeat_column,
)
from bench.verify.report import Finding, add_findings, read_or_report, require
from bench.verify.table_checks import Predictor, check_distances, check_labels, check_predictions
from bench.verify.trusted_code import check_code, check_trusted
from bench.verify.witnesses import CERTIFICATES, WITNESS_CHECKS, check_contradictions, check_witnesses

Check = tuple[Sequence[str], Callable[[], list[Finding]]]  # the names of its findings, and how to make them
Inputs = Callable[[], tuple[EvalContext, Table]]


@dataclass
class Verified:
    """The findings of all checks, the results of the repeated attacks and certifiers, and the network's fingerprint.

    table: of the run, if it could be read. advice: what to do about files and code that are not here; "" if all are.
    """

    findings: list[Finding] = field(default_factory=list)
    repeated: Repeated = field(default_factory=Repeated)
    fingerprint: list[float] = field(default_factory=list)
    table: Table | None = None
    advice: str = ""

    @property
    def lowered(self) -> tuple[float, float] | None:
        """The accuracy under attack by the table, and without the examples that fell here; None if it stays."""
        if self.table is None:
            return None
        robust = survivors(self.table)
        left = robust & ~_fell(self.repeated, self.table)
        return None if left.all() or (left == robust).all() else (float(robust.mean()), float(left.mean()))


def verify(folder: Path, settings: Settings) -> Verified:
    """Run all checks of one run. A failed check does not stop the others; missing input makes one not checkable."""
    result = Verified()
    record = read_or_report(result.findings, "record", lambda: record_files.read_record(folder), otherwise="failed")
    if record is None:
        return result
    result.advice = _advice(record, settings)
    checks = _plan_checks(folder, record, settings, result)
    total = sum(len(names) for names, _ in checks)
    with Progress(f"verify {'/'.join(folder.parts[-2:])}", total, "check") as progress:
        for names, check in checks:
            progress.advance(0, names[0])
            add_findings(result.findings, names, check)
            progress.advance(len(names))
        progress.note = ""  # the last line is about all checks
    return result


def _plan_checks(folder: Path, record: Record, settings: Settings, result: Verified) -> list[Check]:
    """Read the table, the data set and the model, and list the checks, with a finding for what could not be read.

    The names of a check are those of its findings, so that the progress counts the rows of the report.
    """
    unread: list[Finding] = []
    read = partial(read_or_report, unread)
    table = result.table = read("table", lambda: read_table(folder), otherwise="failed")
    data = read("data", lambda: load_data(record, table, settings))
    model = read("model", lambda: load_model(_weights(folder, record), record, require(data, "data"), settings))
    test = None if data is None else Split.test(data, settings.device)
    witnesses = partial(files.read_arrays, folder / record_files.WITNESSES)

    def predictor() -> Predictor:
        return Predictor(require(model, "model"), require(test, "data"), eval_batch(record))

    def inputs() -> tuple[EvalContext, Table]:
        context = make_context(require(model, "model"), require(test, "data"), record, settings)
        return context, require(table, "table")

    checks: list[Check] = [
        (["configuration"], lambda: [_check_config(folder, record)]),
        *(
            ([f"hash of {name}"], partial(_check_file, folder, record, name))
            for name in dict.fromkeys(("weights", "examples", "witnesses", *record.artifacts))
        ),
        *(([finding.name], partial(list, [finding])) for finding in unread),
        (["aggregates"], lambda: [_check_aggregates(record, require(table, "table"))]),
        ([CLAIMS], lambda: [_check_claims(folder, record, require(table, "table"), require(data, "data"))]),
        *_distances(record, table),
        (LEAK_CHECKS, lambda: check_leakage(require(table, "table"), eval_batch(record))),
        (["hash of the data"], lambda: [_check_data(record, require(data, "data"))]),
        (["labels"], lambda: [check_labels(require(table, "table"), require(data, "data").y_test)]),
        (["predictions"], lambda: [_check_predictions(predictor(), require(table, "table"), result)]),
    ]
    if record.corruptions:
        again = partial(check_corruptions, record=record, settings=settings)
        checks.append(([CORRUPTED_AGAIN], lambda: [again(predictor(), require(table, "table"), require(data, "data"))]))
    if record.threat.norm == CORRUPTIONS:
        return checks  # there is nothing to attack or to certify
    checks += [
        (WITNESS_CHECKS, lambda: check_witnesses(*inputs(), record, witnesses())),
        ([METHODS], lambda: [check_methods(record, inputs()[0], require(data, "data").classes, settings)]),
    ]
    if record.config.get("code"):
        checks.append((["code"], lambda: [check_code(record, settings.trusted)]))
    if "network" in record.artifacts:
        described = partial(check_description, folder, record, partial(certifiers_of, record, settings))
        checks.append(([DESCRIPTION], lambda: [described(*inputs())]))
    if record.certifiers or record.bracket:
        consistent = partial(check_contradictions, record=record)
        checks.append(
            ([CERTIFICATES], lambda: [consistent(require(test, "data"), require(table, "table"), witnesses())])
        )
    if settings.sample != 0:
        compared = TEST_ABOVE_TRAIN[: 3 if table is not None and certified(table).any() else 2]
        arrays = partial(require, data, "data")
        checks += _repetitions(folder, record, settings, inputs, arrays, compared, result.repeated)
    return checks


def _repetitions(
    folder: Path, record: Record, settings: Settings, inputs: Inputs, data: Callable[[], Arrays],
    compared: Sequence[str], into: Repeated,
) -> list[Check]:  # fmt: skip
    """List the checks that repeat an attack or a certifier. compared: the names of those on training images."""

    def proven() -> frozenset[int]:
        arrays = read_proofs(folder, record, files.read_arrays)
        return frozenset() if arrays is None else frozenset(proofs_from(arrays))

    def attack() -> list[Finding]:
        return [repeat_attack(*inputs(), record, data().classes, settings, into)]

    def column(spec: str) -> list[Finding]:
        context, table = inputs()
        return [repeat_column(context, table, spec, record, settings, into)]

    def certifier(spec: str) -> list[Finding]:
        return [repeat_certifier(*inputs(), spec, settings, proven(), into)]

    def memorised() -> list[Finding]:
        context, table = inputs()
        (planned,) = make_attacks([settings.attack], context.threat).values()
        specs = [spec for spec in certifying_specs(record) if _is_ours(spec, settings)]
        certifiers = {spec: each for spec, each in make_certifiers(specs).items() if each.kind == "deterministic"}
        return check_memorised(context, table, data(), planned.attack, certifiers, _fell(into, table))

    return [
        (["attacked again"], attack),
        *(([run_again(spec)], partial(column, spec)) for spec in record.attacks),
        *(([f"certified again by {spec}"], partial(certifier, spec)) for spec in certifying_specs(record)),
        (compared, memorised),
    ]


def _advice(record: Record, settings: Settings) -> str:
    """What to do about code that the user has not named, or about files that are not in the folder."""
    if set(record.config.get("code") or ()) - set(settings.trusted.values()):
        return f"{give_code(record)} to run the code of the run (read it first)"
    return absent_files(record, record.artifacts)


def _weights(folder: Path, record: Record) -> Path:
    """The weights file; UserError if the record says that it is not in the folder."""
    file = record.artifacts.get("weights")
    if file is not None and file.path is None and not (folder / WEIGHTS).exists():
        raise UserError(f"the weights are published at {file.url}" if file.url else "the weights are not published")
    return folder / WEIGHTS


def _distances(record: Record, table: Table | None) -> list[Check]:
    """The check of the columns of distances, if the table has any."""
    names = [key for key in table or () if key.startswith("distance/")]
    return [(names, lambda: check_distances(record, require(table, "table")))] if names else []


def _fell(into: Repeated, table: Table) -> Flags:
    flags: Flags = np.zeros_like(table["clean"])
    flags[list(into.fell.points)] = True
    return flags


def _is_ours(spec: str, settings: Settings) -> bool:
    try:
        check_trusted(spec, settings.trusted)
        make_certifiers([spec])
    except UserError:
        return False
    return True


def _check_predictions(predictor: Predictor, table: Table, result: Verified) -> Finding:
    finding = check_predictions(predictor, table)
    result.fingerprint = fingerprint(predictor.model, predictor.test)
    return finding


def _check_claims(folder: Path, record: Record, table: Table, data: Arrays) -> Finding:
    weights = folder / WEIGHTS
    spec = spec_of(weights) if weights.exists() else None
    proofs = read_proofs(folder, record, files.read_arrays)
    return check_claims(record, table, n_train=len(data.y_train), proofs=proofs, spec=spec)


def _check_config(folder: Path, record: Record) -> Finding:
    """Check that the config has the hash that names the run and equals config.json; check_claims checks its fields."""
    name, computed = "configuration", content_hash(record.config)  # of the JSON: RunConfig may have newer settings
    if computed != record.config_hash:
        return Finding(name, "failed", f"the config has the hash {computed}, not {record.config_hash}")
    path = folder / record_files.CONFIG
    if path.exists() and json.loads(path.read_bytes()) != record.config:
        return Finding(name, "failed", "config.json differs from the record's config")
    return Finding(name, "passed", f"hash {computed}")


def _check_file(folder: Path, record: Record, name: str) -> list[Finding]:
    """Check that a file of the run has the hash and the size in the record."""
    title, artifact = f"hash of {name}", record.artifacts.get(name)
    if artifact is None:
        return [Finding(title, "failed", "the record has no such file")]
    if artifact.path is None:
        return [Finding(title, "not checkable", f"published at {artifact.url}" if artifact.url else "not published")]
    path = folder / Path(artifact.path).name
    if (path.stat().st_size, digest := files.sha256(path)) != (artifact.bytes, artifact.sha256):
        return [Finding(title, "failed", f"{path.name} has {digest[:12]}, the record {artifact.sha256[:12]}")]
    return [Finding(title, "passed", f"{path.name} has {digest[:12]}")]


def _check_aggregates(record: Record, table: Table) -> Finding:
    try:
        check_record(record, table)
    except UserError as error:
        return Finding("aggregates", "failed", str(error))
    return Finding("aggregates", "passed", f"the accuracies follow from the {record.n_examples} rows of the table")


def _check_data(record: Record, data: Arrays) -> Finding:
    for source, claims in (("provenance", record.provenance), ("config", record.config)):
        claimed = str(claims.get("data_hash"))
        if claimed != data.hash:
            evidence = f"{data.name} has {data.hash[:12]}, the record's {source} {claimed[:12]}"
            return Finding("hash of the data", "failed", evidence)
    return Finding("hash of the data", "passed", f"{data.name} has {data.hash[:12]}")
