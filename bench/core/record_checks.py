"""Checks that the numbers of a record follow from its per-example table. Imports no torch."""

import math
from collections.abc import Iterator

import numpy as np

from bench.core.errors import UserError
from bench.core.example_table import (
    Flags,
    Table,
    Threat,
    accuracy,
    attack_specs,
    attacked,
    certified,
    certifier_specs,
    check_table,
    corrupted,
    mean_accuracy,
    mean_radius,
    own_specs,
    survivors,
    union,
    worst_by,
    worst_case,
)
from bench.core.records import Bracket, CertifierResult, Record


def check_record(record: Record, table: Table) -> None:
    """UserError if a number of the record does not follow from its table."""
    check_table(table)
    if record.n_examples != len(table["index"]):
        raise UserError(f"the record counts {record.n_examples} examples, its table {len(table['index'])}")
    for name, in_record, in_table in (
        ("attacks", set(record.attacks), set(attack_specs(table))),
        ("certifiers", set(record.certifiers), set(certifier_specs(table))),
        ("worst accuracy", record.worst is not None, _worst(record, table) is not None),
        (
            "attacks that set the worst accuracy",
            record.worst_by,
            worst_by(table) if record.worst_by is not None else None,
        ),
        ("accuracy under a union of threat models", record.union is not None, union(table) is not None),
        ("bracket", record.bracket is not None, "status" in table),
        ("corruptions", set(record.corruptions), set(by_corruption := corrupted(table))),
        ("accuracy under corruptions", record.corrupted is not None, bool(by_corruption)),
    ):
        if in_record != in_table:
            raise UserError(f"the record and its table disagree on the {name}")
    for name, acc, ci95, flags in _accuracies(record, table):
        computed = accuracy(flags) if flags.ndim == 1 else mean_accuracy(flags)
        values = [acc, *ci95], [computed.acc, *computed.ci95]
        if not all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(*values, strict=True)):
            raise UserError(f"the record's {name} is {acc}; its table gives {computed.acc}")
    if record.proofs is not None and not 0 <= record.proofs.count <= int(certified(table).sum()):
        raise UserError(f"the record counts {record.proofs.count} proofs; its table has fewer certified examples")
    for spec, result in record.certifiers.items():
        _check_certifier(spec, result, record.threat, table)
    if record.bracket is not None:
        _check_bracket(record.bracket, table)


def _accuracies(record: Record, table: Table) -> Iterator[tuple[str, float, tuple[float, float], Flags]]:
    """(name, value and interval in the record, flags in the table) of each accuracy."""
    yield "clean accuracy", record.clean.acc, record.clean.ci95, table["clean"]
    for spec, attack in record.attacks.items():
        yield f"accuracy under {spec}", attack.robust_acc, attack.ci95, table[f"robust/{spec}"]
    if (own := record.worst) is not None and (robust := _worst(record, table)) is not None:
        yield "worst accuracy", own.robust_acc, own.ci95, robust
    if (every := record.union) is not None:
        by_all = worst_case(table, attack_specs(table))
        robust = by_all if record.worst_by is None else by_all & survivors(table)
        yield "accuracy under the union", every.robust_acc, every.ci95, robust
    for spec, result in record.certifiers.items():
        yield f"certified accuracy of {spec}", result.certified_acc, result.ci95, table[f"certified/{spec}"]
    under = corrupted(table)
    for name, corruption in record.corruptions.items():
        yield f"accuracy under {name}", corruption.acc, corruption.ci95, under[name]
        for severity, (acc, flags) in enumerate(zip(corruption.by_severity, under[name], strict=True), 1):
            yield f"accuracy under {name} of severity {severity}", acc, accuracy(flags).ci95, flags
    if record.corrupted is not None:
        yield "accuracy under corruptions", record.corrupted.acc, record.corrupted.ci95, np.stack(list(under.values()))
    if (bracket := record.bracket) is not None:
        status = table["status"]
        yield "bracket's certified accuracy", bracket.certified_acc, bracket.certified_ci95, status == "certified"
        yield "bracket's robust accuracy", bracket.robust_acc, bracket.robust_ci95, status != "broken"


def _worst(record: Record, table: Table) -> Flags | None:
    """Which examples `worst` counts: those that nothing broke; in earlier records, those that no attack broke."""
    if record.worst_by is None:
        return worst_case(table) if own_specs(table) else None
    return survivors(table) if attacked(table) else None


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
    """UserError if the stages do not follow from the columns, the run has decided an example that is open here, or
    `truncated` does not follow from the time limit.
    """
    if (bracket.budget is None) == (bracket.budget_seconds is None):
        raise UserError("the record's bracket has either a budget or, in earlier records, budget_seconds")
    if bracket.budget is not None and bracket.truncated != (bracket.open > 0 and bracket.out_of_time):
        raise UserError(
            f"the record says that its bracket is {'' if bracket.truncated else 'not '}truncated, with a time limit of "
            f"{bracket.time_limit} s, {bracket.seconds} s spent and {bracket.open} examples open"
        )
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
