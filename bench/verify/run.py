"""`bench verify`: checks the evidence of a finished run again, from its files, its data set and its model."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.core import files, record_files, registry
from bench.core.attack_specs import make_attacks
from bench.core.config import Suite, content_hash
from bench.core.contracts import Attack, Certifier
from bench.core.devices import choose_device, choose_threads
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Table, check_columns, own_specs
from bench.core.progress import Progress
from bench.core.record_checks import check_record
from bench.core.records import Record
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays, data_folder
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.evaluate.bracket import in_rounds
from bench.evaluate.certificate_audit import STRONG_ATTACK
from bench.evaluate.certified import make_certifiers
from bench.evaluate.context import EvalContext
from bench.training.checkpoints import WEIGHTS, read_spec
from bench.training.rebuild import load_weights, new_model
from bench.verify.description import DESCRIPTION, check_description
from bench.verify.leakage import LEAK_CHECKS, check_leakage
from bench.verify.repeat import attack_again, certify_again
from bench.verify.report import Finding, add_findings, read_or_report, require
from bench.verify.table_checks import check_distances, check_labels, check_predictions
from bench.verify.trusted_code import check_code, check_trusted
from bench.verify.witnesses import CERTIFICATES, WITNESS_CHECKS, check_contradictions, check_witnesses

ATTACK, SAMPLE = "bracket-attack", 64  # the defaults of --attack and --sample

Check = tuple[Sequence[str], Callable[[], list[Finding]]]  # the names of its findings, and how to make them
Inputs = Callable[[], tuple[EvalContext, Table]]

load_once = lru_cache(maxsize=1)(load_arrays)  # the runs of a folder mostly share a data set


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The device, the data folder, the trusted code, and how to attack again (sample 0: not at all)."""

    attack: str  # canonical spec
    sample: int
    seed: int
    device: torch.device
    threads: int | None = None
    data_dir: Path | None = None
    trusted: Mapping[Path, str] = field(default_factory=dict)  # code files that the user named -> SHA-256


def settings(
    *, attack: str | None = None, sample: int | None = None, seed: int | None = None, device: str = "auto",
    threads: int | None = None, data_dir: Path | None = None, plugins: Sequence[Path] = (),
) -> Settings:  # fmt: skip
    """Settings from the options of the command, with the plugins imported; UserError if one is invalid.

    The default seed is random, so that a run cannot be prepared for it.
    """
    if data_dir is not None:
        data_folder(data_dir)  # UserError if it does not exist
    for path in plugins:
        registry.import_file(path, what="plugin")
    return Settings(
        attack=parse_spec(attack or ATTACK, registry.attack).text,
        sample=SAMPLE if sample is None else sample,
        seed=secrets.randbits(31) if seed is None else seed,
        device=choose_device(device),
        threads=threads,
        data_dir=data_dir,
        trusted={path.resolve(): files.sha256(path) for path in plugins},
    )


def verify(folder: Path, settings: Settings) -> list[Finding]:
    """All checks of one run. A failure does not stop the others; missing input makes a check not checkable."""
    report: list[Finding] = []
    record = read_or_report(report, "record", lambda: record_files.read_record(folder), otherwise="failed")
    if record is None:
        return report
    checks = _plan_checks(folder, record, settings)
    with Progress(f"verify {'/'.join(folder.parts[-2:])}", len(checks), "check") as progress:
        for names, check in checks:
            progress.advance(0, names[0])
            add_findings(report, names, check)
            progress.advance(1)
    return report


def _plan_checks(folder: Path, record: Record, settings: Settings) -> list[Check]:
    """Read the table, the data set and the model, and list the checks; what could not be read is one of them."""
    unread: list[Finding] = []
    read = partial(read_or_report, unread)
    table = read("table", lambda: _read_table(folder), otherwise="failed")
    data = read("data", lambda: load_data(record, table, settings))
    model = read("model", lambda: load_model(folder / WEIGHTS, record, require(data, "data"), settings))
    test = None if data is None else Split.test(data, settings.device)
    witnesses = partial(files.read_arrays, folder / record_files.WITNESSES)

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
        (["distances"], lambda: check_distances(record, require(table, "table"))),
        (LEAK_CHECKS, lambda: check_leakage(require(table, "table"), _eval_batch(record))),
        (["hash of the data"], lambda: [_check_data(record, require(data, "data"))]),
        (["labels"], lambda: [check_labels(require(table, "table"), require(data, "data").y_test)]),
        (["predictions"], lambda: [check_predictions(*inputs())]),
        (WITNESS_CHECKS, lambda: check_witnesses(*inputs(), record, witnesses())),
    ]
    if record.config.get("code"):
        checks.append((["code"], lambda: [check_code(record, settings.trusted)]))
    if "network" in record.artifacts:
        described = partial(check_description, folder, record, partial(_certifiers, record, settings))
        checks.append(([DESCRIPTION], lambda: [described(*inputs())]))
    if record.certifiers or record.bracket:
        consistent = partial(check_contradictions, record=record)
        checks.append(
            ([CERTIFICATES], lambda: [consistent(require(test, "data"), require(table, "table"), witnesses())])
        )
    if settings.sample:
        again = partial(_attack_again, record=record, settings=settings)
        checks.append((["attacked again"], lambda: [again(*inputs(), classes=require(data, "data").classes)]))
        checks += [
            ([f"certified again by {spec}"], partial(_certify_again, inputs, spec, record, settings))
            for spec in _certifying_specs(record)
        ]
    return checks


def make_context(model: nn.Module, test: Split, record: Record, settings: Settings) -> EvalContext:
    return EvalContext(
        model=model, test=test, threat=ThreatModel.from_record(record.threat), batch_size=_eval_batch(record),
        seed=settings.seed,
    )  # fmt: skip


def _eval_batch(record: Record) -> int:
    size = record.config.get("eval_batch")
    return size if isinstance(size, int) and size >= 1 else Suite.eval_batch


def _check_config(folder: Path, record: Record) -> Finding:
    """The config has the hash that names the run, and the record's own fields repeat it."""
    config, name = record.config, "configuration"
    computed = content_hash(config)  # of the JSON as it is: RunConfig may have newer settings
    if computed != record.config_hash:
        return Finding(name, "failed", f"the config has the hash {computed}, not {record.config_hash}")
    repeated: dict[str, Any] = {"suite": record.suite, "dataset": record.dataset, "model": record.model}
    repeated |= {"n_examples": record.n_examples, "norm": record.threat.norm, "eps": record.threat.eps}
    repeated |= {} if record.threat.box else {"box": False}
    for key, value in repeated.items():
        if config.get(key) != value:
            return Finding(name, "failed", f"the record has {key} {value}, its config {config.get(key)}")
    path = folder / record_files.CONFIG
    if path.exists() and json.loads(path.read_bytes()) != config:
        return Finding(name, "failed", "config.json differs from the record's config")
    return Finding(name, "passed", f"hash {computed}")


def _check_file(folder: Path, record: Record, name: str) -> list[Finding]:
    """A file of the run has the hash and the size of the record."""
    title, artifact = f"hash of {name}", record.artifacts.get(name)
    if artifact is None:
        return [Finding(title, "failed", "the record has no such file")]
    if artifact.path is None:
        return [Finding(title, "not checkable", f"the file is published at {artifact.url}")]
    path = folder / Path(artifact.path).name
    if (path.stat().st_size, digest := files.sha256(path)) != (artifact.bytes, artifact.sha256):
        return [Finding(title, "failed", f"{path.name} has {digest[:12]}, the record {artifact.sha256[:12]}")]
    return [Finding(title, "passed", f"{path.name} has {digest[:12]}")]


def _read_table(folder: Path) -> Table:
    """The table, with valid columns; CheckError if its rows are not the first examples of the test order."""
    table = files.read_arrays(folder / record_files.TABLE)
    check_columns(table)
    if not np.array_equal(table["index"], np.arange(len(table["index"]))):
        raise CheckError("column 'index' does not count the first examples of the test order")
    return table


def _check_aggregates(record: Record, table: Table) -> Finding:
    try:
        check_record(record, table)
    except UserError as error:
        return Finding("aggregates", "failed", str(error))
    return Finding("aggregates", "passed", f"all follow from the {record.n_examples} rows of the table")


def load_data(record: Record, table: Table | None, settings: Settings) -> Arrays:
    """The data set of a run. UserError if it is not available; CheckError if it is smaller than the table."""
    check_trusted(record.dataset, settings.trusted)
    data = load_once(record.dataset, settings.data_dir)
    if table is not None and len(table["index"]) > len(data.y_test):
        raise CheckError(f"the table has {len(table['index'])} examples, {data.name} only {len(data.y_test)}")
    return data


def _check_data(record: Record, data: Arrays) -> Finding:
    for source, claims in (("provenance", record.provenance), ("config", record.config)):
        claimed = str(claims.get("data_hash"))
        if claimed != data.hash:
            evidence = f"{data.name} has {data.hash[:12]}, the record's {source} {claimed[:12]}"
            return Finding("hash of the data", "failed", evidence)
    return Finding("hash of the data", "passed", f"{data.name} has {data.hash[:12]}")


def load_model(path: Path, record: Record, data: Arrays, settings: Settings) -> nn.Module:
    """The run's model, from the build spec of its weights; a code file is run only if the user named it."""
    spec = read_spec(path)
    if spec is None:
        raise CheckError(f"{path.name} has no build spec in its header")
    if (spec.model, spec.defense or record.defense) != (record.model, record.defense):
        raise CheckError(f"{path.name} holds {spec.model} of {spec.defense}, not {record.model} of {record.defense}")
    if (spec.shape, spec.classes) != (data.shape, data.classes):
        raise CheckError(f"{path.name} is for images {spec.shape} and {spec.classes} classes, unlike {data.name}")
    check_trusted(spec.model, settings.trusted)
    model = new_model(spec)
    try:
        load_weights(model, path)
    except UserError as error:
        raise CheckError(str(error)) from error
    torch.set_num_threads(settings.threads or choose_threads(model, data.shape))
    return model.to(settings.device)


def _attack_again(context: EvalContext, table: Table, record: Record, classes: int, settings: Settings) -> Finding:
    (planned,) = make_attacks([settings.attack], context.threat).values()
    planned.attack.check_fits(context.threat, context.test.image_shape, classes)
    own = {spec: attack for spec in _own_attacks(record, table) for attack in _repeatable(spec, context, settings)}
    finding = attack_again(context, table, {settings.attack: planned.attack}, own, settings.sample)
    by = "" if finding.outcome == "weaker" else f"{settings.attack}, "  # its evidence names the attack
    return replace(finding, evidence=f"{by}seed {settings.seed}: {finding.evidence}")


def _own_attacks(record: Record, table: Table) -> list[str]:
    """The specs of the attacks that left the record's accuracy; of the bracket only if its time was not spent."""
    finished = record.bracket and not record.bracket.time_is_spent
    return [*own_specs(table), *([STRONG_ATTACK] if finished else [])]


def _repeatable(spec: str, context: EvalContext, settings: Settings) -> list[Attack]:
    """The attack; none if it needs code that the user has not named, or a file that is not here."""
    try:
        check_trusted(spec, settings.trusted)
        return [planned.attack for planned in make_attacks([spec], context.threat).values()]
    except UserError:
        return []


def _certifying_specs(record: Record) -> list[str]:
    """The specs of all that certified something, by the record."""
    specs = [spec for spec, result in record.certifiers.items() if result.mean_radius > 0]
    stages = {} if record.bracket is None else record.bracket.stages
    return list(dict.fromkeys([*specs, *(name for name, stage in stages.items() if stage.certified)]))


def _certifiers(record: Record, settings: Settings) -> list[Certifier]:
    """Those that certified something; UserError if one needs code that the user has not named."""
    specs = _certifying_specs(record)
    for spec in specs:
        check_trusted(spec, settings.trusted)
    return list(make_certifiers(specs).values())


def _certify_again(inputs: Inputs, spec: str, record: Record, settings: Settings) -> list[Finding]:
    check_trusted(spec, settings.trusted)
    (certifier,) = make_certifiers([spec]).values()
    if spec not in record.certifiers and record.bracket and record.bracket.budget:
        *_, certifier = in_rounds(certifier, record.bracket.budget)
    if certifier.kind == "probabilistic":
        raise UserError("its certificates depend on random draws, so another draw may give none")
    return [certify_again(*inputs(), spec, certifier, settings.sample)]
