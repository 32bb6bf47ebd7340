"""One attack against one model: who survives, with what evidence, at what cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core.contracts import Attack, frozen
from bench.core.example_table import Table, accuracy
from bench.core.records import AttackResult, StageResult
from bench.core.staged_attack import Stage, StagedAttack
from bench.datasets.split import Split
from bench.evaluate.batch_results import Part, broken_in, passes_in, seconds_in, warnings_in
from bench.evaluate.cascade import Done, run_cascade
from bench.evaluate.witnesses import Evidence


@dataclass(frozen=True)
class Attacked(Evidence):
    """columns: `robust/SPEC`, `passes/SPEC` and, of a minimum-norm attack, `distance/SPEC`."""

    result: AttackResult


def measure_attack(
    model: nn.Module,
    test: Split,
    attack: Attack,
    spec: str,
    *,
    clean: npt.NDArray[np.bool_],
    batch_size: int,
    seed: int,
    parts: Path | None = None,
    report: Callable[[int, str], None] | None = None,
) -> Attacked:
    """Attack each example that the model gets right. Success is what a fresh forward pass says.

    With a folder `parts`, what is done is kept there, and found again by the next call.
    """
    done = list(
        run_cascade(
            model, test, stages_of(attack, model, test), name=spec, threat=attack.threat, right=clean,
            batch_size=batch_size, seed=seed, parts=parts, report=report,
        )
    )  # fmt: skip
    return _collect(done, spec, attack, clean)


def stages_of(attack: Attack, model: nn.Module, test: Split) -> Sequence[Stage[Attack]]:
    """The stages of a staged attack against this model; any other attack is one stage without a name."""
    return attack.stages(classes_of(model, test)) if isinstance(attack, StagedAttack) else [Stage("", attack)]


def classes_of(model: nn.Module, test: Split) -> int:
    with frozen(model), torch.no_grad():
        classes: int = model(next(test.in_order(1)).x).shape[1]
    return classes


def _collect(done: Sequence[Done], spec: str, attack: Attack, clean: npt.NDArray[np.bool_]) -> Attacked:
    robust, spent = clean.copy(), np.zeros(len(clean), dtype=np.int64)
    distance = np.zeros(len(clean), dtype=np.float32)
    decided = np.full(len(clean), "", dtype=f"U{max((len(stage.name) for stage, _ in done), default=1) or 1}")
    for stage, part in done:
        index, broken = part["index"], part["broken"]
        robust[index[broken]] = False
        decided[index[broken]] = stage.name
        spent[index] += np.where(broken, part["fell"], part["spent"])
        distance[index] = part["distance"]
    columns: Table = {f"robust/{spec}": robust, f"passes/{spec}": spent}
    if attack.minimum_norm:
        columns[f"distance/{spec}"] = distance
    stages: dict[str, StageResult] = {}
    if isinstance(attack, StagedAttack):
        columns[f"decided_by/{spec}"] = decided
        stages = {stage.name: _stage_result([part for other, part in done if other is stage]) for stage, _ in done}
    share, whole = accuracy(robust), _stage_result([part for _, part in done])
    result = AttackResult(
        robust_acc=share.acc, ci95=share.ci95, forwards=whole.forwards, backwards=whole.backwards,
        seconds=whole.seconds, warnings=warnings_in([part for _, part in done]), stages=stages,
    )  # fmt: skip
    return Attacked(attack.threat, columns, *broken_in([part for _, part in done]), result)


def _stage_result(parts: Sequence[Part]) -> StageResult:
    forwards, backwards = passes_in(parts)
    return StageResult(
        attacked=sum(len(part["index"]) for part in parts),
        broken=sum(int(part["broken"].sum()) for part in parts),
        forwards=forwards,
        backwards=backwards,
        seconds=seconds_in(parts),
    )
