"""Certificates put to the test: a few of the certified examples are attacked all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from bench.core import registry, seeds
from bench.core.contracts import Attack
from bench.core.errors import CheckError
from bench.core.example_table import BRACKET, Table, certificates, certified
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack

STRONG = "bracket-attack"
SHARE = 0.02


def audit(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    table: Table,
    *,
    batch_size: int,
    seed: int,
    parts: Path | None = None,
) -> int:
    """Attack a sample of the certified examples all the same; how many. CheckError where one falls.

    The sample is SHARE of them and at least one, drawn by the seed.
    """
    proven = np.flatnonzero(certified(table))
    if not len(proven):
        return 0
    sample = np.zeros_like(table["clean"])
    generator = np.random.default_rng(seeds.derive(seed, "audit"))
    sample[generator.choice(proven, max(1, round(SHARE * len(proven))), replace=False)] = True
    attack: Attack = registry.attack.get(STRONG)(threat=threat)
    found = measure_attack(
        model, test, attack, "audit", clean=sample, batch_size=batch_size, seed=seed, parts=parts
    )  # fmt: skip
    if len(found.broken):
        example = int(found.broken.min())
        makers = [maker for maker, column in certificates(table).items() if column[example]]
        if makers == [BRACKET]:
            makers = [str(table["decided_by"][example])]
        raise CheckError(
            f"{makers[0]} certified test example {example}, and {STRONG} breaks it; no certificate of it can be trusted"
        )
    return int(sample.sum())
