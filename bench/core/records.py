"""The record of a run and its per-example table: schema, reading, writing, checking. Imports no torch.

The table is a dict of numpy arrays with one row per evaluated example: `index`, `label`, `prediction` int64, `clean`
bool, `robust/SPEC` bool, `passes/SPEC` int64 (passes of the example, both ways, until it fell to the attack; all of
them where it did not), `distance/SPEC` float32 (of a minimum-norm attack), `certified/SPEC` bool, `radius/SPEC`
float32. Every accuracy of a record is computed from it.

"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bench.core.errors import CheckError, UserError
from bench.core.registry import one_line

SCHEMA = 1
RECORD, TABLE, WITNESSES = "record.json", "examples.npz", "witnesses.npz"
Table = dict[str, npt.NDArray[Any]]


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of the examples with its 95 % Clopper-Pearson interval."""

    acc: float
    ci95: tuple[float, float]


class Robustness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy under one attack (or the worst of all), clean errors counted as not robust."""

    robust_acc: float
    ci95: tuple[float, float]


class StageResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one stage of a staged attack did: how many examples it attacked, how many it broke, at what cost."""

    attacked: int
    broken: int
    forwards: int
    backwards: int
    seconds: float


class AttackResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy under one attack, and its cost: passes of one example through the model, and wall seconds."""

    robust_acc: float
    ci95: tuple[float, float]
    forwards: int
    backwards: int
    seconds: float
    warnings: list[str] = []
    stages: dict[str, StageResult] = {}  # by name, where the attack has several


class CertifierResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certified_acc: float
    ci95: tuple[float, float]
    mean_radius: float
    seconds: float


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cost of training: passes of one example, wall seconds; and what the loop warned of."""

    epochs: int
    seconds: float
    forwards: int
    backwards: int
    warnings: list[str] = []


class SanityCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sanity check: `value` alarms where it is above `threshold`; both are None where nothing was measured."""

    name: str
    outcome: str  # "passed" | "suspect" | "unreliable" | "skipped"
    value: float | None
    threshold: float | None
    evidence: str  # one line: what was measured, on how many examples, and what was tried to resolve it


class Sanity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine's verdict on an evaluation, its reasons (a line each), and every check that was made."""

    verdict: str  # "clean" | "suspect" | "unreliable"; "unchecked" where judge (bench/evaluate/sanity.py) did not run
    reasons: list[str]
    checks: list[SanityCheck] = []


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the run folder (path) or published elsewhere (url)."""

    sha256: str
    bytes: int
    path: str | None = None
    url: str | None = None


class Threat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    norm: str
    eps: float


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run: one defense (or checkpoint), one seed.

    suite: whose data, threat model and settings the run began with. Whether it also ran all of the suite's attacks on
    all of its examples is in `attacks` and `n_examples`, for a leaderboard to ask.
    """

    schema: int
    suite: str | None
    dataset: str
    model: str
    defense: str
    seed: int
    threat: Threat
    config: dict[str, Any]
    config_hash: str
    n_examples: int
    clean: Accuracy
    attacks: dict[str, AttackResult]
    worst: Robustness | None  # over the attacks under `threat`; None where none ran
    union: Robustness | None = None  # over all attacks, where some ran under another threat model than `threat`
    certifiers: dict[str, CertifierResult]
    training: Training | None  # None where the weights were trained elsewhere
    sanity: Sanity
    artifacts: dict[str, Artifact]
    provenance: dict[str, Any]


def accuracy(hits: npt.NDArray[np.bool_]) -> Accuracy:
    """The share of True with its 95 % Clopper-Pearson interval."""
    from scipy.special import betaincinv  # here, for it costs a tenth of a second

    n, k = len(hits), int(hits.sum())
    low = float(betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return Accuracy(k / n, (low, high))


def attack_specs(table: Table) -> list[str]:
    return [key.removeprefix("robust/") for key in table if key.startswith("robust/")]


def threat_of(spec: str, threat: Threat) -> Threat:
    """The threat model of an attack: the record's, but for what its canonical spec says (`:norm=L2`, `:eps=0.5`)."""
    options = dict(part.split("=", 1) for part in spec.split(":") if "=" in part)
    return Threat(options.get("norm", threat.norm), float(options.get("eps", threat.eps)))


def own_specs(table: Table) -> list[str]:
    """The attacks under the record's own threat model."""
    nowhere = Threat("", 0.0)
    return [spec for spec in attack_specs(table) if threat_of(spec, nowhere) == nowhere]


def worst_case(table: Table, specs: Sequence[str] | None = None) -> npt.NDArray[np.bool_]:
    """Which examples are right and survive every attack under the record's own threat model, or each of `specs`."""
    columns = [table[f"robust/{spec}"] for spec in (own_specs(table) if specs is None else specs)]
    robust: npt.NDArray[np.bool_] = np.logical_and.reduce([table["clean"], *columns])
    return robust


def union(table: Table) -> Robustness | None:
    """Accuracy under all attacks together, where some of them are under another threat model than the record's."""
    specs = attack_specs(table)
    return robustness(worst_case(table, specs)) if len(own_specs(table)) < len(specs) else None


def worst(table: Table) -> Robustness | None:
    """Accuracy under all attacks of the record's own threat model, where there are any."""
    return robustness(worst_case(table)) if own_specs(table) else None


def robustness(hits: npt.NDArray[np.bool_]) -> Robustness:
    found = accuracy(hits)
    return Robustness(found.acc, found.ci95)


def check_table(table: Table) -> None:
    """UserError where the table is not one: columns, types, lengths, robust without being right."""
    types = {"index": np.int64, "label": np.int64, "prediction": np.int64, "clean": np.bool_}
    prefixes = {
        "robust/": np.bool_,
        "certified/": np.bool_,
        "radius/": np.float32,
        "distance/": np.float32,
        "passes/": np.int64,
    }
    for key in types:
        if key not in table:
            raise UserError(f"the table has no column '{key}'")
    n = table["index"].size
    for key, column in table.items():
        wanted = types.get(key) or next((t for prefix, t in prefixes.items() if key.startswith(prefix)), None)
        if wanted is not None and (column.dtype != wanted or column.shape != (n,)):
            raise UserError(f"column '{key}' is {column.dtype} {column.shape}; it must be {wanted.__name__} ({n},)")
    if n == 0 or len(set(table["index"].tolist())) != n:
        raise UserError("the table must have at least one row, and no example twice")
    if not np.array_equal(table["clean"], table["label"] == table["prediction"]):
        raise UserError("column 'clean' does not follow from 'label' and 'prediction'")
    for spec in attack_specs(table):
        if np.any(table[f"robust/{spec}"] & ~table["clean"]):
            raise UserError(f"column 'robust/{spec}' counts an example as robust that is wrong without any attack")


def check(record: Record, table: Table) -> None:
    """UserError where a record's numbers do not follow from its table."""
    check_table(table)
    if record.schema != SCHEMA:
        raise UserError(f"the record has schema {record.schema}; this version reads {SCHEMA}")
    if record.n_examples != len(table["index"]):
        raise UserError(f"the record counts {record.n_examples} examples, its table {len(table['index'])}")
    if set(record.attacks) != set(attack_specs(table)):
        raise UserError("the record's attacks are not those of its table")
    if (record.worst is None) != (not own_specs(table)):
        raise UserError(
            "the record must have a worst accuracy where it has attacks of its threat model, and only there"
        )
    if (record.union is None) != (union(table) is None):
        raise UserError("the record must have a union where it has attacks of several threat models, and only there")
    if set(record.certifiers) != {key.removeprefix("certified/") for key in table if key.startswith("certified/")}:
        raise UserError("the record's certifiers are not those of its table")
    pairs: list[tuple[str, float, tuple[float, float], Accuracy]] = [
        ("clean accuracy", record.clean.acc, record.clean.ci95, accuracy(table["clean"]))
    ]
    for spec, result in record.attacks.items():
        pairs.append((f"accuracy under {spec}", result.robust_acc, result.ci95, accuracy(table[f"robust/{spec}"])))
    if record.worst is not None:
        pairs.append(("worst accuracy", record.worst.robust_acc, record.worst.ci95, accuracy(worst_case(table))))
    if record.union is not None:
        both = accuracy(worst_case(table, attack_specs(table)))
        pairs.append(("accuracy under the union", record.union.robust_acc, record.union.ci95, both))
    for what, claimed, ci95, computed in pairs:
        values = [claimed, *ci95], [computed.acc, *computed.ci95]
        if not all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(*values, strict=True)):
            raise UserError(f"the record's {what} is {claimed}; its table gives {computed.acc}")


def write_record(folder: Path, record: Record) -> None:
    plain = msgspec.to_builtins(record)
    write_atomically(folder / RECORD, (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())


def read_record(folder: Path) -> Record:
    """The record in `folder`; UserError where it is missing or malformed."""
    path = folder / RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {RECORD}; a finished run folder has one") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a record: {one_line(error)}") from error


def read_run(folder: Path) -> Record:
    """A finished run's record, after checking that it follows from its table and that its files are the ones it names.

    CheckError where one of them does not.
    """
    record = read_record(folder)
    try:
        check(record, read_arrays(folder / TABLE))
        for name, file in record.artifacts.items():
            if file.path is not None and sha256(folder / Path(file.path).name) != file.sha256:
                raise UserError(f"its {name} are not those of the record")
    except (UserError, OSError) as error:
        raise CheckError(f"{folder} was changed after it was finished: {error}; delete it and run again") from error
    return record


def find_records(paths: list[Path]) -> list[Path]:
    """The folders at or below `paths` that hold a record, in order; UserError where a path has none."""
    found: list[Path] = []
    for path in paths:
        below = sorted(p.parent for p in path.rglob(RECORD)) if path.is_dir() else []
        if not below:
            raise UserError(f"{path} holds no {RECORD}; give a run folder, or a folder of run folders")
        found += [p for p in below if p not in found]
    return found


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """A compressed .npz, written in one go."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> Table:
    """All arrays of an .npz, never a pickle; UserError where it is broken."""
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # numpy, zipfile, zlib and tokenize raise a dozen kinds over a broken file
        raise UserError(f"{path} is not a readable .npz of plain arrays ({one_line(error)})") from error
    for key, value in found.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"{path} is not a readable .npz of plain arrays ('{key}' is none)")
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then rename: a reader sees all of it or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifact(path: Path) -> Artifact:
    return Artifact(sha256=sha256(path), bytes=path.stat().st_size, path=path.name)
