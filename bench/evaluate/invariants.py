"""What must be true of every finished evaluation. A run in which one of these fails produces no record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core.contracts import Attack, frozen
from bench.core.errors import CheckError
from bench.core.records import Table, check_table, worst_case
from bench.datasets.split import Split
from bench.evaluate.clean import predict


def check_evaluation(
    model: nn.Module,
    test: Split,
    attacks: Mapping[str, Attack],
    table: Table,
    witnesses: dict[str, npt.NDArray[Any]],
    batch_size: int,
    *,
    deterministic: bool = True,
) -> None:
    """CheckError where the table contradicts itself, or a witness is outside its threat model or classified right.

    A model that is not deterministic, which its verdict says, may classify a witness right when it is asked again.
    """
    check_table(table)
    for threat in dict.fromkeys(attack.threat for attack in attacks.values()):
        specs = [spec for spec, attack in attacks.items() if attack.threat == threat]
        mine = np.isin(witnesses["attack"], specs)
        index, x_adv = witnesses["index"][mine], witnesses["x_adv"][mine]
        fell = table["index"][table["clean"] & ~worst_case(table, specs)]
        if sorted(index.tolist()) != sorted(fell.tolist()):
            raise CheckError("the examples that fell to an attack are not those that have a witness")
        for start in range(0, len(index), batch_size):
            rows = slice(start, start + batch_size)
            clean = test.take(torch.from_numpy(index[rows]).to(test.y.device))
            points = torch.from_numpy(x_adv[rows]).to(test.y.device)
            inside = threat.contains(points, clean.x)
            with frozen(model):
                wrong = (predict(model, points) != clean.y) | (not deterministic)
            for holds, what in ((inside, "lies outside the threat model"), (wrong, "is classified right")):
                if not holds.all():
                    example = int(clean.index[~holds][0])
                    raise CheckError(
                        f"the witness of test example {example} {what}; the evaluation cannot be trusted "
                        "(a model that answers differently from one batch to another does this)"
                    )
