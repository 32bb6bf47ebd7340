"""`bench verify`: a finished run's evidence, checked again from its files, its data set and its model."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.core import files, record_checks, record_files, registry
from bench.core.attack_specs import make_attacks
from bench.core.config import Suite, make_config
from bench.core.devices import choose_device, choose_threads
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Table, certifier_specs
from bench.core.records import Record
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel, checked_norm
from bench.datasets.arrays import Arrays
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.evaluate.certified import make_certifiers
from bench.models.build import build_model
from bench.training.checkpoints import WEIGHTS, read_spec, read_state
from bench.verify.certificates import CERTIFICATES, certify_again, check_contradictions
from bench.verify.checks import (
    LEAK_CHECKS,
    Finding,
    attack_again,
    check_distances,
    check_labels,
    check_leakage,
    check_predictions,
)
from bench.verify.report import check, load, need
from bench.verify.witnesses import WITNESS_CHECKS, check_witnesses

ATTACK = "bracket-attack"  # what attacks again where --attack is not given
SAMPLE = 64
KINDS = {"b": "flags", "i": "whole numbers", "f": "numbers", "U": "words"}
COLUMNS = {"robust": "b", "certified": "b", "broken": "b", "radius": "f", "status": "U", "decided_by": "U"}

load_once = lru_cache(maxsize=1)(load_arrays)  # the runs of a folder mostly share a data set


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the data are, what to run on, which code is trusted, and how to attack again (sample 0: not at all)."""

    attack: str  # canonical spec
    sample: int
    seed: int
    device: torch.device
    threads: int | None = None
    data_dir: Path | None = None
    trusted: Mapping[Path, str] = field(default_factory=dict)  # files of code that the user named -> SHA-256


def settings(
    *, attack: str | None = None, sample: int | None = None, seed: int | None = None, device: str = "auto",
    threads: int | None = None, data_dir: Path | None = None, plugins: Sequence[Path] = (),
) -> Settings:  # fmt: skip
    """Settings from the words of the command, plugins imported; UserError where one is wrong.

    Without a seed, one is drawn afresh, so that nobody can prepare a run for it.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"data folder {data_dir} does not exist; make it, or name another with --data-dir")
    for path in plugins:
        if not path.is_file():
            raise UserError(f"plugin {path}: there is no such file; --plugin takes a Python file")
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
    """Every check of one run. One that fails does not stop the others; what a check lacks makes it not checkable."""
    report: list[Finding] = []
    record = load(report, "record", lambda: record_files.read_record(folder), otherwise="failed")
    if record is None:
        return report
    size = _eval_batch(record)

    check(report, ["configuration"], lambda: [_check_config(folder, record)])
    for name in ("weights", "examples", "witnesses"):
        check(report, [f"hash of {name}"], partial(_check_file, folder, record, name))
    if record.config.get("code"):
        check(report, ["code"], lambda: [_check_code(record, settings.trusted)])

    table = load(report, "table", lambda: _read_table(folder), otherwise="failed")
    check(report, ["aggregates"], lambda: [_check_aggregates(record, need(table, "table"))])
    check(report, ["distances"], lambda: check_distances(record, need(table, "table")))
    check(report, LEAK_CHECKS, lambda: check_leakage(need(table, "table"), size))

    data = load(report, "data", lambda: load_data(record, table, settings))
    check(report, ["hash of the data"], lambda: [_check_data(record, need(data, "data"))])
    check(report, ["labels"], lambda: [check_labels(need(table, "table"), need(data, "data").y_test)])

    model = load(report, "model", lambda: load_model(folder / WEIGHTS, record, need(data, "data"), settings))
    test = None if data is None else Split(data.x_test, data.y_test, settings.device)
    ready = partial(_ready, model, test, table)
    witnesses = partial(files.read_arrays, folder / record_files.WITNESSES)
    check(report, ["predictions"], lambda: [check_predictions(*ready(), size)])
    check(report, WITNESS_CHECKS, lambda: check_witnesses(*ready(), record, witnesses(), size))
    if record.certifiers or record.bracket:
        stand = partial(check_contradictions, record=record)
        check(report, [CERTIFICATES], lambda: [stand(need(test, "data"), need(table, "table"), witnesses())])
    if settings.sample:
        again = partial(_attack_again, record=record, settings=settings)
        check(report, ["attacked again"], lambda: [again(*ready(), classes=need(data, "data").classes)])
        for spec in _certifying(record):
            check(report, [f"certified again by {spec}"], partial(_certify_again, ready, record, spec, settings))
    return report


def _eval_batch(record: Record) -> int:
    size = record.config.get("eval_batch")
    return size if isinstance(size, int) and size >= 1 else Suite.eval_batch


def _check_config(folder: Path, record: Record) -> Finding:
    """Is the record's config the one whose hash names the run, and do the record's own fields repeat it?"""
    config, name = record.config, "configuration"
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    computed = hashlib.sha256(canonical.encode()).hexdigest()[:12]  # not by RunConfig: it may have got new settings
    if computed != record.config_hash:
        return Finding(name, "failed", f"the config has the hash {computed}, not {record.config_hash}")
    own = {"suite": record.suite, "dataset": record.dataset, "model": record.model, "n_examples": record.n_examples}
    for key, value in (own | {"norm": record.threat.norm, "eps": record.threat.eps}).items():
        if config.get(key) != value:
            return Finding(name, "failed", f"the record says {key} {value}, its config {config.get(key)}")
    path = folder / "config.json"
    if path.exists() and json.loads(path.read_bytes()) != config:
        return Finding(name, "failed", "config.json is not the record's config")
    return Finding(name, "passed", f"hash {computed}")


def _check_file(folder: Path, record: Record, name: str) -> list[Finding]:
    """Is a file of the run the one that the record names?"""
    title, artifact = f"hash of {name}", record.artifacts.get(name)
    if artifact is None:
        return [Finding(title, "failed", "the record names no such file")]
    if artifact.path is None:
        return [Finding(title, "not checkable", f"the file is not here but at {artifact.url}")]
    path = folder / Path(artifact.path).name
    if (path.stat().st_size, found := files.sha256(path)) != (artifact.bytes, artifact.sha256):
        return [Finding(title, "failed", f"{path.name} has {found[:12]}, the record {artifact.sha256[:12]}")]
    return [Finding(title, "passed", f"{path.name} has {found[:12]}")]


def _check_code(record: Record, trusted: Mapping[Path, str]) -> Finding:
    """Are the plugins and model files of the run among those that the user named?"""
    used = set(record.config["code"])
    if not trusted:
        return Finding("code", "not checkable", f"the run used {len(used)} files of code; name them with --plugin")
    missing = used - set(trusted.values())
    if missing:
        return Finding("code", "failed", f"no file given has the hash {min(missing)[:12]} of one that the run used")
    return Finding("code", "passed", f"{len(used)} files are those of the run")


def _check_trusted(text: str, settings: Settings) -> None:
    """UserError where a spec of the run would import a file that the user has not named."""
    path = Path(text.partition(":")[0])
    if path.suffix == ".py" and path.resolve() not in settings.trusted:
        raise UserError(f"'{text}' is code of a file; give --plugin {path} to run it")


def _read_table(folder: Path) -> Table:
    """The table, each column of the type and length that the checks count on; CheckError where it is not."""
    table = files.read_arrays(folder / record_files.TABLE)
    n = table["index"].size if "index" in table else 0
    if n == 0 or not np.array_equal(table["index"], np.arange(n)):
        raise CheckError("column 'index' does not count the first examples of the test order")
    for key, kind in {"index": "i", "label": "i", "prediction": "i", "clean": "b"}.items():
        _check_column(table, key, kind, n)
    for key in table:
        if key.partition("/")[0] in COLUMNS:
            _check_column(table, key, COLUMNS[key.partition("/")[0]], n)
    for spec in certifier_specs(table):
        _check_column(table, f"radius/{spec}", "f", n)
    return table


def _check_column(table: Table, key: str, kind: str, n: int) -> None:
    if key not in table or (table[key].dtype.kind, table[key].shape) != (kind, (n,)):
        raise CheckError(f"column '{key}' is missing, or not of {n} {KINDS[kind]}")


def _check_aggregates(record: Record, table: Table) -> Finding:
    try:
        record_checks.check_record(record, table)
    except UserError as error:
        return Finding("aggregates", "failed", str(error))
    return Finding("aggregates", "passed", f"all follow from the table's {record.n_examples} rows")


def load_data(record: Record, table: Table | None, settings: Settings) -> Arrays:
    """The data set of a run. UserError where it is not here; CheckError where the table has more examples than it."""
    _check_trusted(record.dataset, settings)
    data = load_once(record.dataset, settings.data_dir)
    if table is not None and len(table["index"]) > len(data.y_test):
        raise CheckError(f"the table has {len(table['index'])} examples, {data.name} only {len(data.y_test)}")
    return data


def _check_data(record: Record, data: Arrays) -> Finding:
    for where, claimed in (("provenance", record.provenance), ("config", record.config)):
        if claimed.get("data_hash") != data.hash:
            evidence = f"{data.name} has {data.hash[:12]}, the record's {where} {str(claimed.get('data_hash'))[:12]}"
            return Finding("hash of the data", "failed", evidence)
    return Finding("hash of the data", "passed", f"{data.name} has {data.hash[:12]}")


def load_model(path: Path, record: Record, data: Arrays, settings: Settings) -> nn.Module:
    """The run's model as its weights' header says; code of a file is run only where the user named the file."""
    spec = read_spec(path)
    if spec is None:
        raise CheckError(f"{path.name} does not say how its model is built")
    if (spec.model, spec.defense or record.defense) != (record.model, record.defense):
        raise CheckError(f"{path.name} holds {spec.model} of {spec.defense}, not {record.model} of {record.defense}")
    if (spec.shape, spec.classes) != (data.shape, data.classes):
        raise CheckError(f"{path.name} is of images {spec.shape}, {spec.classes} classes; {data.name} has others")
    _check_trusted(spec.model, settings)
    model = build_model(spec.model, spec.shape, spec.classes)
    if spec.defense is not None:
        target = registry.defense.get(spec.defense)
        model = target(make_config(target.config_class, spec.defense, spec.training)).build(model)
    try:
        model.load_state_dict(read_state(path), strict=True)
    except RuntimeError as error:
        raise CheckError(f"{path.name} does not fit its own header: {str(error).splitlines()[-1].strip()}") from error
    torch.set_num_threads(settings.threads or choose_threads(model, data.shape))
    return model.to(settings.device)


def _ready(model: nn.Module | None, test: Split | None, table: Table | None) -> tuple[nn.Module, Split, Table]:
    return need(model, "model"), need(test, "data"), need(table, "table")


def _attack_again(
    model: nn.Module, test: Split, table: Table, record: Record, classes: int, settings: Settings
) -> Finding:
    threat = ThreatModel(checked_norm(record.threat.norm), record.threat.eps)
    (attack,) = make_attacks([settings.attack], threat).values()
    attack.check_fits(test.image_shape, classes)
    options = {"sample": settings.sample, "seed": settings.seed, "batch_size": _eval_batch(record)}
    found = attack_again(model, test, table, attack, **options)
    return replace(found, evidence=f"{settings.attack}, seed {settings.seed}: {found.evidence}")


def _certifying(record: Record) -> list[str]:
    """The specs of all that certified something, by the record."""
    specs = [spec for spec, result in record.certifiers.items() if result.mean_radius > 0]
    stages = {} if record.bracket is None else record.bracket.stages
    return list(dict.fromkeys([*specs, *(name for name, stage in stages.items() if stage.certified)]))


def _certify_again(
    ready: Callable[[], tuple[nn.Module, Split, Table]], record: Record, spec: str, settings: Settings
) -> list[Finding]:
    _check_trusted(spec, settings)
    (certifier,) = make_certifiers([spec]).values()
    if certifier.kind == "probabilistic":
        raise UserError("its certificates are of random draws, and another draw may give none")
    options = {"sample": settings.sample, "seed": settings.seed, "batch_size": _eval_batch(record)}
    model, test, table = ready()
    return [certify_again(model, test, table, record, spec, certifier, **options)]
