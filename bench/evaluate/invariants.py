"""Conditions that every evaluation must meet. A run that violates one of them writes no record."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.core.contracts import frozen
from bench.core.errors import CheckError
from bench.core.example_table import BRACKET, Table, broken_by, certificates, certified, check_table, survivors
from bench.core.threat import TOLERANCE, ThreatModel
from bench.evaluate.clean import predict
from bench.evaluate.context import EvalContext


def check_evaluation(
    context: EvalContext,
    table: Table,
    witnesses: dict[str, npt.NDArray[Any]],
    threats: Mapping[str, ThreatModel],
    *,
    deterministic: bool = True,
) -> None:
    """CheckError if the table contradicts itself, or a witness is invalid.

    A witness must be within the threat model of its source (`threats`), misclassified, and outside the radius that is
    certified for its example. The model may classify it differently if its verdict says that it is not deterministic.
    """
    check_certificates(table)
    check_table(table)
    broken, none = broken_by(table), np.zeros_like(table["clean"])
    radii, device = certified_radius(table, context.threat), context.test.y.device
    for threat in dict.fromkeys(threats.values()):
        sources = [source for source, other in threats.items() if other == threat]
        of_threat = np.isin(witnesses["attack"], sources)
        indices, x_adv = witnesses["index"][of_threat], witnesses["x_adv"][of_threat]
        rows_broken = np.logical_or.reduce([broken.get(source, none) for source in sources])
        if sorted(indices.tolist()) != table["index"][rows_broken].tolist():
            raise CheckError("the examples that an attack broke are not those that have a witness")
        for start in range(0, len(indices), context.batch_size):
            rows = slice(start, start + context.batch_size)
            clean = context.test.take(torch.from_numpy(indices[rows]).to(device))
            points = torch.from_numpy(x_adv[rows]).to(device)
            radius = torch.from_numpy(radii[indices[rows]]).to(device)
            with frozen(context.model):
                misclassified = (predict(context.model, points) != clean.y) | (not deterministic)
            for valid, problem in (
                (threat.contains(points, clean.x), "is outside the threat model"),
                (misclassified, "is classified correctly"),
                (context.threat.distance(points, clean.x) > radius, "is within the radius certified for it"),
            ):
                if not valid.all():
                    raise CheckError(
                        f"the witness of test example {int(clean.index[~valid][0])} {problem}; do not trust this "
                        "evaluation (possible cause: a model whose answers depend on the batch)"
                    )


def check_certificates(table: Table) -> None:
    """CheckError if a certified example is broken under the record's threat model, or misclassified."""
    for row in np.flatnonzero(certified(table) & ~survivors(table)):
        certifier = next(source for source, column in certificates(table).items() if column[row])
        attack = next((source for source, column in broken_by(table).items() if column[row]), "the clean image")
        raise CheckError(
            f"{certifier} certifies test example {table['index'][row]}, but {attack} breaks it; one of them is wrong: "
            "do not trust this evaluation"
        )


def certified_radius(table: Table, threat: ThreatModel) -> npt.NDArray[np.float64]:
    """The radius (N,), in the record's norm, in which certificates of the model exclude adversarial examples; else -1.

    A certificate for the threat model holds at every point that it contains: up to eps (1 + TOLERANCE).
    """
    assert isinstance(threat.eps, float)
    largest: npt.NDArray[np.float64] = np.where(certified(table), threat.eps * (1 + TOLERANCE), -1.0)
    for source in certificates(table):
        if source != BRACKET:
            radius = table[f"radius/{source}"].astype(np.float64)
            largest = np.maximum(largest, np.where(radius > 0, radius * (1 - TOLERANCE), -1.0))
    return largest
