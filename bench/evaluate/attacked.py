"""One attack against one model, batch by batch: who survives, with what evidence, at what cost."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core import registry, seeds
from bench.core.contracts import Attack, Batch, frozen
from bench.core.errors import UserError
from bench.core.passes import count_passes
from bench.core.records import AttackResult, Table, accuracy, read_arrays, write_arrays
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.clean import predict

Part = dict[str, npt.NDArray[Any]]  # of one batch
PART = ("broken", "witnesses", "index", "distance", "passes", "seconds", "warnings")


@dataclass(frozen=True)
class Attacked:
    """What one attack did to a test split.

    columns: of the table, `robust/SPEC` and, of a minimum-norm attack, `distance/SPEC`. broken: indices of the
    examples it broke, and the adversarial example of each.
    """

    columns: Table
    broken: npt.NDArray[np.int64]
    witnesses: npt.NDArray[np.float32]
    result: AttackResult


def make_attacks(names: Sequence[str], threat: ThreatModel) -> dict[str, Attack]:
    """Attacks by canonical spec; each at most once."""
    found: dict[str, Attack] = {}
    for name in names:
        spec = parse_spec(name, registry.attack)
        attack = spec.make(threat=threat)
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
    report: Callable[[int], None] | None = None,
) -> Attacked:
    """Attack each example that the model gets right, in fixed batches of the test order.

    A batch's randomness depends on the run's seed, the attack and the batch alone. With a folder `parts`, what is
    done of it is kept there, and found again by the next call. Success is what a fresh forward pass says.
    """
    found: list[Part] = []
    for number, batch in enumerate(test.in_order(batch_size)):
        path = None if parts is None else parts / f"{hashlib.sha256(spec.encode()).hexdigest()[:16]}-{number}.npz"
        part = None if path is None else _read_part(path)
        if part is None:
            right = torch.from_numpy(clean).to(batch.index.device)[batch.index]
            generator = seeds.generator(batch.x.device, seed, spec, number)
            part = _attack_batch(model, attack, _take(batch, right), generator)
            if path is not None:
                write_arrays(path, part)
        found.append(part)
        if report is not None:
            report(len(batch))
    return _collect(found, spec, clean, attack.minimum_norm)


def _read_part(path: Path) -> Part | None:
    """What is kept of a batch; None where there is nothing, or nothing that can be used."""
    if not path.exists():
        return None
    try:
        part = read_arrays(path)
    except UserError:
        return None
    return part if set(part) == set(PART) else None


def _take(batch: Batch, rows: torch.Tensor) -> Batch:
    return Batch(batch.x[rows], batch.y[rows], batch.index[rows])


def _attack_batch(model: nn.Module, attack: Attack, batch: Batch, generator: torch.Generator) -> Part:
    """The part of one batch: examples that the attack broke, their witnesses, distances, and the cost."""
    began = time.perf_counter()
    heard: list[str] = []
    broken = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
    x_adv, distance = batch.x, torch.zeros(len(batch), dtype=torch.float64)
    with count_passes(model) as passes:
        if len(batch):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                x_adv = attack(model, batch, generator=generator)
            heard = sorted({str(each.message) for each in caught})
            distance = attack.threat.distance(x_adv, batch.x)
            with frozen(model):
                broken = predict(model, x_adv) != batch.y
            if attack.minimum_norm:
                distance = torch.where(broken, distance, torch.inf)
                broken = broken & attack.threat.contains(x_adv, batch.x)
    return {
        "broken": batch.index[broken].cpu().numpy(),
        "witnesses": x_adv[broken].cpu().numpy(),
        "index": batch.index.cpu().numpy(),
        "distance": distance.cpu().numpy().astype(np.float32),
        "passes": np.array([passes.forwards, passes.backwards]),
        "seconds": np.array(time.perf_counter() - began),
        "warnings": np.array(heard, dtype=np.str_),
    }


def _collect(parts: list[Part], spec: str, clean: npt.NDArray[np.bool_], minimum_norm: bool) -> Attacked:
    broken = np.concatenate([part["broken"] for part in parts])
    robust = clean.copy()
    robust[broken] = False
    columns: Table = {f"robust/{spec}": robust}
    if minimum_norm:
        distance = np.zeros(len(clean), dtype=np.float32)
        for part in parts:
            distance[part["index"]] = part["distance"]
        columns[f"distance/{spec}"] = distance
    share = accuracy(robust)
    forwards, backwards = np.sum([part["passes"] for part in parts], axis=0).tolist()
    result = AttackResult(
        robust_acc=share.acc,
        ci95=share.ci95,
        forwards=forwards,
        backwards=backwards,
        seconds=round(float(sum(part["seconds"] for part in parts)), 3),
        warnings=sorted({str(text) for part in parts for text in part["warnings"]}),
    )
    return Attacked(columns, broken, np.concatenate([part["witnesses"] for part in parts]), result)


def witnesses_of(attacks: dict[str, Attacked]) -> dict[str, npt.NDArray[Any]]:
    """One adversarial example for each broken example, from the first attack that found one.

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


def _first_to_break(attacks: dict[str, Attacked]) -> Iterator[tuple[int, npt.NDArray[np.float32], str]]:
    seen: set[int] = set()
    for spec, attacked in attacks.items():
        for index, x_adv in zip(attacked.broken.tolist(), attacked.witnesses, strict=True):
            if index not in seen:
                seen.add(index)
                yield index, x_adv, spec
