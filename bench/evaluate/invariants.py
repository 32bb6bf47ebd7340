"""What must be true of every finished evaluation. A run in which one of these fails produces no record."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from bench.core.contracts import frozen
from bench.core.errors import CheckError
from bench.core.records import Table, attack_specs, check_table, worst_case
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.clean import predict


def check_evaluation(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    table: Table,
    witnesses: dict[str, npt.NDArray[Any]],
    batch_size: int,
) -> None:
    """CheckError where the table contradicts itself, or a witness is outside the threat model or classified right."""
    check_table(table)
    if not attack_specs(table):
        return
    fell = set(table["index"][table["clean"] & ~worst_case(table)].tolist())
    if fell != set(witnesses["index"].tolist()):
        raise CheckError("the examples that fell to an attack are not those that have a witness")
    for start in range(0, len(fell), batch_size):
        rows = slice(start, start + batch_size)
        clean = test.take(torch.from_numpy(witnesses["index"][rows]).to(test.y.device))
        x_adv = torch.from_numpy(witnesses["x_adv"][rows]).to(test.y.device)
        inside = threat.contains(x_adv, clean.x)
        with frozen(model):
            wrong = predict(model, x_adv) != clean.y
        for holds, what in ((inside, "lies outside the threat model"), (wrong, "is classified right")):
            if not holds.all():
                index = int(clean.index[~holds][0])
                raise CheckError(
                    f"the witness of test example {index} {what}; the evaluation cannot be trusted "
                    "(a model that answers differently from one batch to another does this)"
                )
