"""A whole evaluation: clean, each attack, the evidence, and the checks that it must pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import nn

from bench.core.contracts import Attack
from bench.core.progress import Progress
from bench.core.records import AttackResult, Sanity, Table
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import Attacked, measure_attack, witnesses_of
from bench.evaluate.clean import measure_clean
from bench.evaluate.invariants import check_evaluation
from bench.evaluate.sanity import judge


@dataclass(frozen=True)
class Evaluation:
    """The per-example table, what each attack cost, an adversarial example of each example that fell, the verdict."""

    table: Table
    attacks: dict[str, AttackResult]
    witnesses: dict[str, npt.NDArray[Any]]
    sanity: Sanity


def evaluate_split(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int,
    seed: int,
    parts: Path | None = None,
    show: bool = True,
) -> Evaluation:
    """Measure a model on a split. CheckError where the result contradicts itself.

    With a folder `parts`, what is done is kept there, and a later call goes on from it.
    """
    table = measure_clean(model, test, batch_size)
    found: dict[str, Attacked] = {}
    for spec, attack in attacks.items():
        with Progress(f"attack {spec}", int(table["clean"].sum()), "example", show=show) as progress:
            found[spec] = measure_attack(
                model, test, attack, spec,
                clean=table["clean"], batch_size=batch_size, seed=seed, parts=parts, report=progress.advance,
            )  # fmt: skip
        table |= found[spec].columns
        if show:
            for warning in found[spec].result.warnings:
                print(f"warning ({spec}): {warning}", file=sys.stderr)
    witnesses = witnesses_of(found)
    sanity = judge(model, test, threat, table, seed=seed, batch_size=batch_size)
    random = any(check.name == "stochastic" and check.outcome != "passed" for check in sanity.checks)
    check_evaluation(model, test, attacks, table, witnesses, batch_size, deterministic=not random)
    return Evaluation(table, {spec: each.result for spec, each in found.items()}, witnesses, sanity)
