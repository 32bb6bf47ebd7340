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
    """UserError if a number of the record does not follow from its table."""
    check_table(table)
    if record.n_examples != len(table["index"]):
        raise UserError(f"the record counts {record.n_examples} examples, its table {len(table['index'])}")
    if set(record.attacks) != set(attack_specs(table)):
        raise UserError("the attacks of the record are not those of its table")
    if (record.worst is None) != (not own_specs(table)):
        raise UserError("the record must have a worst accuracy if and only if attacks under its threat model ran")
    if (record.union is None) != (union(table) is None):
        raise UserError("the record must have a union if and only if it has attacks under several threat models")
    if set(record.certifiers) != set(certifier_specs(table)):
        raise UserError("the certifiers of the record are not those of its table")
    if (record.bracket is None) != ("status" not in table):
        raise UserError("the record must have a bracket if and only if its table has a status")
    for name, acc, ci95, computed in _accuracies(record, table):
        values = [acc, *ci95], [computed.acc, *computed.ci95]
        if not all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(*values, strict=True)):
            raise UserError(f"the record's {name} is {acc}; its table gives {computed.acc}")
    for spec, result in record.certifiers.items():
        _check_certifier(spec, result, record.threat, table)
    if record.bracket is not None:
        _check_bracket(record.bracket, table)


def _accuracies(record: Record, table: Table) -> list[tuple[str, float, tuple[float, float], Accuracy]]:
    """(name, value and interval in the record, computed from the table) of each accuracy."""
    rows = [("clean accuracy", record.clean.acc, record.clean.ci95, accuracy(table["clean"]))]
    for spec, attack in record.attacks.items():
        rows.append((f"accuracy under {spec}", attack.robust_acc, attack.ci95, accuracy(table[f"robust/{spec}"])))
    if record.worst is not None:
        rows.append(("worst accuracy", record.worst.robust_acc, record.worst.ci95, accuracy(worst_case(table))))
    if record.union is not None:
        union_acc = accuracy(worst_case(table, attack_specs(table)))
        rows.append(("accuracy under the union", record.union.robust_acc, record.union.ci95, union_acc))
    for spec, result in record.certifiers.items():
        certified_acc = accuracy(table[f"certified/{spec}"])
        rows.append((f"certified accuracy of {spec}", result.certified_acc, result.ci95, certified_acc))
    if (bracket := record.bracket) is not None:
        low, high = accuracy(table["status"] == "certified"), accuracy(table["status"] != "broken")
        rows.append(("bracket's certified accuracy", bracket.certified_acc, bracket.certified_ci95, low))
        rows.append(("bracket's robust accuracy", bracket.robust_acc, bracket.robust_ci95, high))
    return rows


def _check_certifier(spec: str, result: CertifierResult, threat: Threat, table: Table) -> None:
    """UserError if a certifier's result does not follow from its columns, or its radii contradict the threat model."""
    proven, radius = table[f"certified/{spec}"], table[f"radius/{spec}"]
    mean, broken = mean_radius(table, spec), table.get(f"broken/{spec}")
    if not math.isclose(result.mean_radius, mean, rel_tol=1e-6, abs_tol=1e-9):
        raise UserError(f"the record's mean radius of {spec} is {result.mean_radius}; its table gives {mean}")
    if np.any(radius[proven] < threat.eps * (1 - 1e-6)):
        raise UserError(f"column 'radius/{spec}' is below eps for an example that is certified")
    if result.broken != (broken_count := None if broken is None else int(broken.sum())):
        raise UserError(f"the record says that {spec} broke {result.broken} examples; its table gives {broken_count}")
    if (result.kind == "probabilistic") != (f"prediction/{spec}" in table):
        raise UserError(f"{spec} is {result.kind}; probabilistic certifiers, and only they, have a prediction column")


def _check_bracket(bracket: Bracket, table: Table) -> None:
    """UserError if the stages do not follow from the columns, or the run has decided an example that is open here."""
    status, decided_by = table["status"], table["decided_by"]
    if bracket.open != (open_count := int((status == "open").sum())):
        raise UserError(f"the record counts {bracket.open} open examples; its table gives {open_count}")
    if unknown := set(decided_by.tolist()) - {"", *bracket.stages}:
        raise UserError(f"column 'decided_by' names '{min(unknown)}', which is no stage of the record's bracket")
    for name, stage in bracket.stages.items():
        counts = [int(((decided_by == name) & (status == kind)).sum()) for kind in ("certified", "broken")]
        if counts != [stage.certified, stage.broken] or sum(counts) > stage.tried:
            raise UserError(
                f"stage {name} decided {stage.certified} + {stage.broken} of {stage.tried}; the table gives {counts}"
            )
    if np.any(certified(table) & (status != "certified")) or np.any(~survivors(table) & (status != "broken")):
        raise UserError("the bracket leaves an example open that the attacks or certifiers of the run have decided")
