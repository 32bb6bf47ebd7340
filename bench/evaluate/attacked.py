"""One attack against one model: who survives, with what evidence, at what cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core import registry
from bench.core.contracts import Attack, Stage, StagedAttack, frozen
from bench.core.errors import UserError
from bench.core.foreign_attacks import make_attack
from bench.core.records import AttackResult, StageResult, Table, accuracy
from bench.core.specs import options_of, parse_spec
from bench.core.threat import Norm, ThreatModel
from bench.datasets.split import Split
from bench.evaluate.cascade import Part, run_cascade


@dataclass(frozen=True)
class Attacked:
    """What one attack did to a test split.

    columns: of the table, `robust/SPEC`, `passes/SPEC` and, of a minimum-norm attack, `distance/SPEC`. broken: indices
    of the examples it broke, and the adversarial example of each.
    """

    threat: ThreatModel
    columns: Table
    broken: npt.NDArray[np.int64]
    witnesses: npt.NDArray[np.float32]
    result: AttackResult


def make_attacks(names: Sequence[str], threat: ThreatModel) -> dict[str, Attack]:
    """Attacks by canonical spec; each at most once. Every attack takes `norm` and `eps`, where it is not `threat`."""
    found: dict[str, Attack] = {}
    for name in names:
        spec = parse_spec(name, registry.attack, common={"norm": (Norm, threat.norm), "eps": (float, threat.eps)})
        if taken := {"norm", "eps"} & set(options_of(spec.target)):
            raise UserError(f"attack '{name}' must not have an option {min(taken)}; ask for `threat` instead")
        norm, eps = (spec.options.pop(option, None) for option in ("norm", "eps"))
        if norm not in (None, threat.norm) and eps is None:
            raise UserError(f"attack '{name}' is under another norm; give its eps too, as in {name}:eps=0.5")
        attack = make_attack(spec, ThreatModel(norm or threat.norm, eps or threat.eps, threat.box))
        if attack in found.values():
            raise UserError(f"attack '{name}' is given twice; keep one")
        found[spec.text] = attack
    return found


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
    stages = stages_of(attack, model, test)
    done = list(
        run_cascade(
            model, test, stages, name=spec, right=clean, batch_size=batch_size, seed=seed, parts=parts, report=report
        )
    )
    return _collect(done, spec, attack, clean)


def stages_of(attack: Attack, model: nn.Module, test: Split) -> Sequence[Stage]:
    """The stages of a staged attack against this model; any other attack is one stage without a name."""
    if not isinstance(attack, StagedAttack):
        return [Stage("", attack)]
    with frozen(model), torch.no_grad():
        classes = model(next(test.in_order(1)).x).shape[1]
    return attack.stages(classes)


def _collect(done: Sequence[tuple[Stage, Part]], spec: str, attack: Attack, clean: npt.NDArray[np.bool_]) -> Attacked:
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
        seconds=whole.seconds, warnings=sorted({str(text) for _, part in done for text in part["warnings"]}),
        stages=stages,
    )  # fmt: skip
    return Attacked(
        attack.threat, columns,
        np.concatenate([np.zeros(0, np.int64), *(part["index"][part["broken"]] for _, part in done)]),
        np.concatenate([part["witnesses"] for _, part in done]) if done else np.zeros(0, np.float32),
        result,
    )  # fmt: skip


def _stage_result(parts: Sequence[Part]) -> StageResult:
    forwards, backwards = (int(sum(part["passes"][way] for part in parts)) for way in (0, 1))
    return StageResult(
        attacked=sum(len(part["index"]) for part in parts),
        broken=sum(int(part["broken"].sum()) for part in parts),
        forwards=forwards,
        backwards=backwards,
        seconds=round(float(sum(part["seconds"] for part in parts)), 3),
    )


def witnesses_of(attacks: Mapping[str, Attacked]) -> dict[str, npt.NDArray[Any]]:
    """One adversarial example for each example and threat model that broke it, from the first attack that found one.

    index (M,), x_adv (M,C,H,W) float32, attack (M,) the spec that made it; sorted by index.
    """
    rows = sorted(_first_to_break(attacks), key=lambda row: row[0])
    if not rows:
        return {"index": np.zeros(0, np.int64), "x_adv": np.zeros(0, np.float32), "attack": np.zeros(0, "U1")}
    return {
        "index": np.array([index for index, _, _ in rows]),
        "x_adv": np.stack([x_adv for _, x_adv, _ in rows]),
        "attack": np.array([spec for _, _, spec in rows]),
    }


def _first_to_break(attacks: Mapping[str, Attacked]) -> Iterator[tuple[int, npt.NDArray[np.float32], str]]:
    seen: set[tuple[int, ThreatModel]] = set()
    for spec, attacked in attacks.items():
        for index, x_adv in zip(attacked.broken.tolist(), attacked.witnesses, strict=True):
            if (index, attacked.threat) not in seen:
                seen.add((index, attacked.threat))
                yield index, x_adv, spec
