"""What must be true of every finished evaluation. A run in which one of these fails produces no record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core.contracts import frozen
from bench.core.errors import CheckError
from bench.core.example_table import BRACKET, Table, broken_by, certificates, certified, check_table, survivors
from bench.core.threat import TOLERANCE, ThreatModel
from bench.datasets.split import Split
from bench.evaluate.clean import predict


def check_evaluation(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    makers: Mapping[str, ThreatModel],
    table: Table,
    witnesses: dict[str, npt.NDArray[Any]],
    batch_size: int,
    *,
    deterministic: bool = True,
) -> None:
    """CheckError where the table contradicts itself, a witness is outside its threat model or classified right, or one
    lies where a certificate says that nothing does.

    threat: the record's, which is what is certified. makers: the threat model of whoever made witnesses. A model that
    is not deterministic, which its verdict says, may classify a witness right when it is asked again.
    """
    check_certificates(table)
    check_table(table)
    fell, safe = broken_by(table), safe_radius(table, threat)
    for theirs in dict.fromkeys(makers.values()):
        names = [maker for maker, other in makers.items() if other == theirs]
        mine = np.isin(witnesses["attack"], names)
        index, x_adv = witnesses["index"][mine], witnesses["x_adv"][mine]
        broken = np.logical_or.reduce([np.zeros_like(table["clean"]), *(fell[name] for name in names if name in fell)])
        if sorted(index.tolist()) != table["index"][broken].tolist():
            raise CheckError("the examples that fell to an attack are not those that have a witness")
        for start in range(0, len(index), batch_size):
            rows = slice(start, start + batch_size)
            clean = test.take(torch.from_numpy(index[rows]).to(test.y.device))
            points = torch.from_numpy(x_adv[rows]).to(test.y.device)
            radius = torch.from_numpy(safe[index[rows]]).to(test.y.device)
            with frozen(model):
                wrong = (predict(model, points) != clean.y) | (not deterministic)
            for holds, what in (
                (theirs.contains(points, clean.x), "lies outside the threat model"),
                (wrong, "is classified right"),
                (threat.distance(points, clean.x) > radius, "lies where its certificate says that nothing does"),
            ):
                if not holds.all():
                    example = int(clean.index[~holds][0])
                    raise CheckError(
                        f"the witness of test example {example} {what}; the evaluation cannot be trusted "
                        "(a model that answers differently from one batch to another does this)"
                    )


def check_certificates(table: Table) -> None:
    """CheckError where an example is certified that fell under the record's threat model, or is wrong already."""
    for row in np.flatnonzero(certified(table) & ~survivors(table)):
        proof = next(maker for maker, column in certificates(table).items() if column[row])
        breaks = next((maker for maker, column in broken_by(table).items() if column[row]), "the clean image")
        raise CheckError(
            f"{proof} certifies test example {table['index'][row]}, and {breaks} breaks it; one of them is wrong, so "
            "the evaluation cannot be trusted"
        )


def safe_radius(table: Table, threat: ThreatModel) -> npt.NDArray[np.float64]:
    """How near, in the record's norm, no adversarial example can be by any certificate of the model itself, (N,).

    What is certified for the threat model holds wherever that allows a point: up to eps (1 + TOLERANCE).
    """
    assert isinstance(threat.eps, float)
    found: npt.NDArray[np.float64] = np.where(certified(table), threat.eps * (1 + TOLERANCE), -1.0)
    for maker in certificates(table):
        if maker != BRACKET:
            radius = table[f"radius/{maker}"].astype(np.float64)
            found = np.maximum(found, np.where(radius > 0, radius * (1 - TOLERANCE), -1.0))
    return found
