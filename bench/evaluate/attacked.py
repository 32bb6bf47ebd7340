"""Runs one attack on one model: the robust examples, the witnesses and the cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from bench.core.attack_specs import PlannedAttack
from bench.core.contracts import Attack, frozen
from bench.core.example_table import Flags, Table, accuracy
from bench.core.records import AttackResult, StageResult
from bench.core.staged_attack import Stage, StagedAttack
from bench.evaluate.batch_results import AttackBatch, broken_in, seconds_in, warnings_in
from bench.evaluate.cascade import Report, run_cascade
from bench.evaluate.context import EvalContext
from bench.evaluate.witnesses import Measurement


def measure_attack(
    context: EvalContext, spec: str, planned: PlannedAttack, clean: Flags, report: Report | None = None
) -> Measurement[AttackResult]:
    """Attack each example of `clean` (N,), the correctly classified ones, under the attack's own threat model.

    A fresh forward pass decides which examples are broken. The columns are `robust/SPEC`, `passes/SPEC`,
    `distance/SPEC` (minimum-norm attacks) and `decided_by/SPEC` (staged attacks).
    """
    attack, own = planned.attack, replace(context, threat=planned.threat)
    stages: Sequence[Stage[Attack]] = [Stage("", attack)]
    if isinstance(attack, StagedAttack):
        with frozen(context.model), torch.no_grad():
            classes = context.model(next(context.test.in_order(1)).x).shape[1]
        stages = attack.stages(planned.threat, classes)
    batches = [
        (stage.name, result)
        for stage, result in run_cascade(own, stages, name=spec, examples=clean, report=report)
        if isinstance(result, AttackBatch)
    ]
    return _summarize(batches, spec, planned, clean)


def _summarize(
    batches: Sequence[tuple[str, AttackBatch]], spec: str, planned: PlannedAttack, clean: Flags
) -> Measurement[AttackResult]:
    robust, passes = clean.copy(), np.zeros(len(clean), dtype=np.int64)
    distance = np.zeros(len(clean), dtype=np.float32)
    stages = {name: [batch for other, batch in batches if other == name] for name, _ in batches}
    decided_by = np.full(len(clean), "", dtype=f"U{max(map(len, stages), default=1) or 1}")
    for name, batch in batches:
        index, broken = batch.index, batch.broken
        robust[index[broken]] = False
        decided_by[index[broken]] = name
        passes[index] += np.where(broken, batch.passes_to_break, batch.passes)
        distance[index] = batch.distance
    columns: Table = {f"robust/{spec}": robust, f"passes/{spec}": passes}
    if planned.attack.minimum_norm:
        columns[f"distance/{spec}"] = distance
    results: dict[str, StageResult] = {}
    if isinstance(planned.attack, StagedAttack):
        columns[f"decided_by/{spec}"] = decided_by
        results = {name: _stage_result(of_stage) for name, of_stage in stages.items()}
    every = [batch for _, batch in batches]
    share, whole = accuracy(robust), _stage_result(every)
    result = AttackResult(
        robust_acc=share.acc, ci95=share.ci95, forwards=whole.forwards, backwards=whole.backwards,
        seconds=whole.seconds, warnings=warnings_in(every), stages=results,
    )  # fmt: skip
    return Measurement(planned.threat, columns, *broken_in(every), result)


def _stage_result(batches: Sequence[AttackBatch]) -> StageResult:
    attacked, broken = sum(len(batch.index) for batch in batches), sum(int(batch.broken.sum()) for batch in batches)
    forwards, backwards = sum(batch.forwards for batch in batches), sum(batch.backwards for batch in batches)
    return StageResult(attacked, broken, forwards, backwards, seconds_in(batches))
