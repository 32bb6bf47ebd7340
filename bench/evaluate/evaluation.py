"""A whole evaluation: clean, attacks, certifiers, the bracket, the evidence, and the checks that it must pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import nn

from bench.core.contracts import Attack, Certifier
from bench.core.example_table import BRACKET, Table
from bench.core.progress import Progress
from bench.core.records import AttackResult, Bracket, CertifierResult, Sanity
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack
from bench.evaluate.bracket import BracketPlan, measure_bracket
from bench.evaluate.certificate_audit import audit
from bench.evaluate.certified import measure_certifier
from bench.evaluate.clean import measure_clean
from bench.evaluate.invariants import check_certificates, check_evaluation
from bench.evaluate.witnesses import Evidence, witnesses_of
from bench.sanity.verdict import judge


@dataclass(frozen=True)
class Evaluation:
    """The per-example table, what each attack, certifier and the bracket found at what cost, an adversarial example of
    each example that fell, the verdict. audited: certified examples that were attacked all the same.
    """

    table: Table
    attacks: dict[str, AttackResult]
    witnesses: dict[str, npt.NDArray[Any]]
    sanity: Sanity
    certifiers: dict[str, CertifierResult] = field(default_factory=dict)
    bracket: Bracket | None = None
    audited: int = 0


def evaluate_split(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    attacks: Mapping[str, Attack],
    *,
    certifiers: Mapping[str, Certifier] | None = None,
    bracket: BracketPlan | None = None,
    batch_size: int,
    seed: int,
    parts: Path | None = None,
    show: bool = True,
) -> Evaluation:
    """Measure a model on a split. CheckError where the result contradicts itself.

    With a folder `parts`, what is done is kept there, and a later call goes on from it.
    """
    table = measure_clean(model, test, batch_size)
    evidence: dict[str, Evidence] = {}
    attacked: dict[str, AttackResult] = {}
    certified: dict[str, CertifierResult] = {}
    narrowed: Bracket | None = None
    right = int(table["clean"].sum())
    how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "parts": parts}
    for spec, attack in attacks.items():
        with Progress(f"attack {spec}", right, "example", show=show) as progress:
            fell = measure_attack(model, test, attack, spec, clean=table["clean"], report=progress.advance, **how)
        evidence[spec], attacked[spec] = fell, fell.result
        table |= fell.columns
        _warn(spec, fell.result.warnings, show)
    for spec, certifier in (certifiers or {}).items():
        total = len(test) if certifier.kind == "probabilistic" else right
        with Progress(f"certifier {spec}", total, "example", show=show) as progress:
            proven = measure_certifier(
                model, test, certifier, spec, threat=threat, clean=table["clean"], report=progress.advance, **how
            )
        evidence[spec], certified[spec] = proven, proven.result
        table |= proven.columns
        _warn(spec, proven.result.warnings, show)
    check_certificates(table)
    if bracket is not None:
        with Progress(BRACKET, len(test), "example", show=show) as progress:
            both = measure_bracket(model, test, bracket, table, threat=threat, report=progress.advance, **how)
        evidence[BRACKET], narrowed = both, both.result
        table |= both.columns
        _warn(BRACKET, both.result.warnings, show)
    audited = audit(model, test, threat, table, **how)
    witnesses = witnesses_of(evidence)
    sanity = judge(model, test, threat, table, seed=seed, batch_size=batch_size)
    random = any(check.name == "stochastic" and check.outcome != "passed" for check in sanity.checks)
    makers = {maker: found.threat for maker, found in evidence.items()}
    check_evaluation(model, test, threat, makers, table, witnesses, batch_size, deterministic=not random)
    return Evaluation(table, attacked, witnesses, sanity, certified, narrowed, audited)


def _warn(spec: str, warnings: Sequence[str], show: bool) -> None:
    if show:
        for warning in warnings:
            print(f"warning ({spec}): {warning}", file=sys.stderr)
