"""Checks that the numbers of a record follow from its per-example table. Imports no torch."""

from __future__ import annotations

import math

import numpy as np

from bench.core.errors import UserError
from bench.core.example_table import (
    Accuracy,
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
from bench.core.records import Bracket, CertifierResult, Record


def check_record(record: Record, table: Table) -> None:
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
