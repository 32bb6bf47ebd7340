"""The record of a run: schema, reading, writing, checking. Imports no torch.

Every accuracy of a record is computed from its per-example table (bench/core/table.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.core.errors import CheckError, UserError
from bench.core.files import read_arrays, sha256, write_atomically
from bench.core.migrations import SCHEMA, migrate
from bench.core.registry import one_line
from bench.core.table import (
    Accuracy,
    Robustness,
    Table,
    Threat,
    accuracy,
    attack_specs,
    certified,
    certifier_specs,
    check_table,
    mean_radius,
    own_specs,
    survivors,
    union,
    worst_case,
)

RECORD, TABLE, WITNESSES = "record.json", "examples.npz", "witnesses.npz"


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
    """What one certifier proved of all examples (a radius of 0 where nothing), and its wall seconds.

    tolerance: the largest that rounding was allowed to take from a margin. broken: how many examples it found a
    counterexample of; None where it looks for none.
    """

    certified_acc: float
    ci95: tuple[float, float]
    mean_radius: float
    seconds: float
    kind: str = "deterministic"  # or "probabilistic": of a classifier of its own, wrong with a small probability
    tolerance: float = 0.0
    broken: int | None = None
    warnings: list[str] = []


class BracketStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one stage of a bracket did with the examples that were still open, and its cost.

    `clean`, and a stage that is a spec of the run's own --attacks or --certifiers, bring what was known before the
    bracket; their cost is not part of it.
    """

    tried: int
    certified: int
    broken: int
    forwards: int
    backwards: int
    seconds: float


class Bracket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The true robust accuracy lies in [certified_acc, robust_acc]: what is certified, and what nothing has broken.

    open: the examples between the two. seconds: of the stages, which stop once they have spent budget_seconds. skipped:
    stages that cannot be, and why.
    """

    certified_acc: float
    certified_ci95: tuple[float, float]
    robust_acc: float
    robust_ci95: tuple[float, float]
    open: int
    budget_seconds: float
    seconds: float
    stages: dict[str, BracketStage]
    skipped: dict[str, str]
    warnings: list[str] = []


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


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run: one defense (or checkpoint), one seed.

    suite: whose data, threat model and settings the run began with. Whether it also ran all of the suite's attacks on
    all of its examples is in `attacks` and `n_examples`, for a leaderboard to ask.
    """

    schema: int
    suite: str | None
    dataset: str
    model: str
    parameters: int | None  # that train and that do not; None where the record is older than this count
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
    bracket: Bracket | None = None  # where one was asked for
    audited: int = 0  # certified examples that were attacked all the same
    training: Training | None  # None where the weights were trained elsewhere
    sanity: Sanity
    artifacts: dict[str, Artifact]
    provenance: dict[str, Any]


class _Version(msgspec.Struct):
    schema: int


def check(record: Record, table: Table) -> None:
    """UserError where a record's numbers do not follow from its table."""
    check_table(table)
    if record.n_examples != len(table["index"]):
        raise UserError(f"the record counts {record.n_examples} examples, its table {len(table['index'])}")
    if set(record.attacks) != set(attack_specs(table)):
        raise UserError("the record's attacks are not those of its table")
    if (record.worst is None) != (not own_specs(table)):
        raise UserError("the record must have a worst accuracy where attacks of its threat model ran, and only there")
    if (record.union is None) != (union(table) is None):
        raise UserError("the record must have a union where it has attacks of several threat models, and only there")
    if set(record.certifiers) != set(certifier_specs(table)):
        raise UserError("the record's certifiers are not those of its table")
    if (record.bracket is None) != ("status" not in table):
        raise UserError("the record must have a bracket where its table has a status, and only there")
    for what, claimed, ci95, computed in _accuracies(record, table):
        values = [claimed, *ci95], [computed.acc, *computed.ci95]
        if not all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(*values, strict=True)):
            raise UserError(f"the record's {what} is {claimed}; its table gives {computed.acc}")
    for spec, result in record.certifiers.items():
        _check_certifier(spec, result, record.threat, table)
    if record.bracket is not None:
        _check_bracket(record.bracket, table)


def _accuracies(record: Record, table: Table) -> list[tuple[str, float, tuple[float, float], Accuracy]]:
    """(what, as the record has it, its interval, as the table has it) of each accuracy."""
    found = [("clean accuracy", record.clean.acc, record.clean.ci95, accuracy(table["clean"]))]
    for spec, attack in record.attacks.items():
        found.append((f"accuracy under {spec}", attack.robust_acc, attack.ci95, accuracy(table[f"robust/{spec}"])))
    if record.worst is not None:
        found.append(("worst accuracy", record.worst.robust_acc, record.worst.ci95, accuracy(worst_case(table))))
    if record.union is not None:
        both = accuracy(worst_case(table, attack_specs(table)))
        found.append(("accuracy under the union", record.union.robust_acc, record.union.ci95, both))
    for spec, proof in record.certifiers.items():
        hits = accuracy(table[f"certified/{spec}"])
        found.append((f"certified accuracy of {spec}", proof.certified_acc, proof.ci95, hits))
    if (ends := record.bracket) is not None:
        low, high = accuracy(table["status"] == "certified"), accuracy(table["status"] != "broken")
        found.append(("bracket's certified accuracy", ends.certified_acc, ends.certified_ci95, low))
        found.append(("bracket's robust accuracy", ends.robust_acc, ends.robust_ci95, high))
    return found


def _check_certifier(spec: str, result: CertifierResult, threat: Threat, table: Table) -> None:
    """UserError where a certifier's columns do not fit its result, or its radii the threat model."""
    proven, radius = table[f"certified/{spec}"], table[f"radius/{spec}"]
    mean, fell = mean_radius(table, spec), table.get(f"broken/{spec}")
    if not math.isclose(result.mean_radius, mean, rel_tol=1e-6, abs_tol=1e-9):
        raise UserError(f"the record's mean radius of {spec} is {result.mean_radius}; its table gives {mean}")
    if np.any(radius[proven] < threat.eps * (1 - 1e-6)):
        raise UserError(f"column 'radius/{spec}' is below eps where 'certified/{spec}' says that all of eps is safe")
    if result.broken != (None if fell is None else int(fell.sum())):
        raise UserError(f"the record says that {spec} broke {result.broken} examples, which is not what its table says")
    if (result.kind == "probabilistic") != (f"prediction/{spec}" in table):
        raise UserError(f"{spec} is {result.kind}; the probabilistic, and only they, have a prediction column")


def _check_bracket(bracket: Bracket, table: Table) -> None:
    """UserError where a bracket's stages are not those that the columns name, or it leaves out what is known."""
    status, decided_by = table["status"], table["decided_by"]
    if bracket.open != int((status == "open").sum()):
        raise UserError(f"the record counts {bracket.open} open examples, which is not what its table says")
    strange = set(decided_by.tolist()) - {"", *bracket.stages}
    if strange:
        raise UserError(f"column 'decided_by' names '{min(strange)}', which is no stage of the record's bracket")
    for name, stage in bracket.stages.items():
        here = [int(((decided_by == name) & (status == kind)).sum()) for kind in ("certified", "broken")]
        if here != [stage.certified, stage.broken] or sum(here) > stage.tried:
            raise UserError(f"the record's stage {name} decided {stage.certified} + {stage.broken}, its table {here}")
    if np.any(certified(table) & (status != "certified")) or np.any(~survivors(table) & (status != "broken")):
        raise UserError("the bracket leaves an example open that the run's own attacks or certifiers have decided")


def write_record(folder: Path, record: Record) -> None:
    text = json.dumps(msgspec.to_builtins(record), indent=1, allow_nan=False)
    write_atomically(folder / RECORD, f"{text}\n".encode())


def read_record(folder: Path) -> Record:
    """The record in `folder`, of whatever schema it was written in; UserError where it is missing or malformed."""
    path = folder / RECORD
    try:
        text = path.read_bytes()
        if msgspec.json.decode(text, type=_Version).schema == SCHEMA:
            return msgspec.json.decode(text, type=Record)
        return msgspec.convert(migrate(msgspec.json.decode(text)), type=Record)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {RECORD}; a finished run folder has one") from error
    except (UserError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
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


def artifact(path: Path) -> Artifact:
    return Artifact(sha256=sha256(path), bytes=path.stat().st_size, path=path.name)
