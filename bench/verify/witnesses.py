"""Do a run's witnesses break what its record says? Every check is a finding of its own (bench/verify/checks.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core.example_table import Flags, Table, broken_by, threat_of
from bench.core.records import Record
from bench.core.threat import ThreatModel, checked_norm
from bench.datasets.split import Split
from bench.verify.checks import (
    NEAR_TIE,
    Finding,
    Witnesses,
    all_but,
    batches,
    broken_by_threat,
    lag_of,
    logits_of,
)

WITNESS_CHECKS = (
    "a witness for each broken",
    "witnesses within eps",
    "witnesses in the box",
    "witnesses misclassified",
)


def check_witnesses(
    model: nn.Module, test: Split, table: Table, record: Record, witnesses: Witnesses, batch_size: int
) -> list[Finding]:
    """Is there one adversarial example for each example that fell, allowed, and wrong by a fresh forward pass?

    Distances are in float64; the tolerance is the threat model's.
    """
    problem = _malformed(witnesses, table, test.image_shape)
    if problem:
        return [Finding(name, "failed", problem) for name in WITNESS_CHECKS]
    complete = _check_completeness(record, table, witnesses)
    if not len(witnesses["index"]):
        return [complete, *(Finding(name, "passed", "there are none") for name in WITNESS_CHECKS[1:])]
    index, points = witnesses["index"], witnesses["x_adv"]
    claims = _by_threat(record, witnesses)
    judged = [judge(model, test, threat, index[of], points[of], batch_size) for threat, of in claims]
    far = [i for each in judged for i in each.index[each.far].tolist()]
    out_of_box = [i for each in judged for i in each.index[each.out_of_box].tolist()]
    right = [i for each in judged for i in each.index[each.right].tolist()]
    ties = sum(int(each.tie.sum()) for each in judged)
    farthest = max(float(each.distance.max()) for each in judged)
    return [
        complete,
        all_but(far, WITNESS_CHECKS[1], "lie outside", f"the farthest is at {farthest:.7f} eps"),
        all_but(out_of_box, WITNESS_CHECKS[2], "leave [0, 1]", f"pixels from {points.min():g} to {points.max():g}"),
        Finding(WITNESS_CHECKS[3], "warning", f"{ties} are near ties that the model now gets right")
        if ties and not right
        else all_but(right, WITNESS_CHECKS[3], "are classified right", f"all {len(index)} are"),
    ]


@dataclass(frozen=True)
class Judgement:
    """Of each of some points (m,): its test example, its distance in units of eps, and why it breaks nothing."""

    index: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]
    far: Flags  # beyond eps
    out_of_box: Flags
    right: Flags  # classified right, or not at all
    tie: Flags  # classified right, by so little that another machine may not

    @property
    def breaks(self) -> Flags:
        """Which points are adversarial examples without any doubt."""
        return ~(self.far | self.out_of_box | self.right | self.tie)


def judge(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    index: npt.NDArray[np.int64],
    x_adv: npt.NDArray[np.float32],
    batch_size: int,
) -> Judgement:
    """Is each of at least one x_adv (m,C,H,W) within `threat` of test example `index` (m,), and wrong when shown?"""
    where = test.y.device
    parts = []
    for rows in batches(len(index), batch_size):
        batch, points = test.take(torch.from_numpy(index[rows]).to(where)), torch.from_numpy(x_adv[rows]).to(where)
        logits = logits_of(model, points)
        correct = (logits.argmax(dim=1) == batch.y) | ~logits.isfinite().all(dim=1)
        other = logits.scatter(1, batch.y[:, None], -torch.inf).argmax(dim=1)
        tie = correct & (lag_of(logits, other) <= NEAR_TIE)
        far = ~replace(threat, box=None).contains(points, batch.x)
        out_of_box = ~((points >= 0) & (points <= 1)).flatten(1).all(dim=1)
        columns = (threat.distance(points, batch.x) / threat.eps, far, out_of_box, correct & ~tie, tie)
        parts.append([column.cpu().numpy() for column in columns])
    return Judgement(index, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _malformed(witnesses: Witnesses, table: Table, shape: tuple[int, int, int]) -> str | None:
    """What keeps the arrays from being witnesses of this table; None where nothing does."""
    missing = {"index", "x_adv", "attack"} - set(witnesses)
    if missing:
        return f"the file of witnesses has no array '{min(missing)}'"
    index, x_adv, attack = witnesses["index"], witnesses["x_adv"], witnesses["attack"]
    n = index.size
    if index.dtype != np.int64 or x_adv.dtype != np.float32 or attack.dtype.kind != "U":
        return f"index, x_adv and attack are {index.dtype}, {x_adv.dtype}, {attack.dtype}; not int64, float32 and text"
    if index.shape != (n,) or attack.shape != (n,) or (n and x_adv.shape != (n, *shape)):
        return f"index {index.shape}, x_adv {x_adv.shape} and attack {attack.shape} do not fit images {shape}"
    strange = set(attack.tolist()) - set(broken_by(table))
    if strange:
        return f"there are witnesses of '{min(strange)}', which is no attack of the table"
    if n and not (index.min() >= 0 and index.max() < len(table["index"])):
        return "there are witnesses of examples that the table does not have"
    return None


def _by_threat(record: Record, witnesses: Witnesses) -> Iterator[tuple[ThreatModel, Flags]]:
    """Each threat model that witnesses are of, and which are."""
    claims = [threat_of(spec, record.threat) for spec in witnesses["attack"].tolist()]
    for claim in dict.fromkeys(claims):
        yield ThreatModel(checked_norm(claim.norm), claim.eps), np.array([other == claim for other in claims])


def _check_completeness(record: Record, table: Table, witnesses: Witnesses) -> Finding:
    """One witness for each (example, threat model) that the table calls broken, of an attack that broke it."""
    name = WITNESS_CHECKS[0]
    wanted = {(i, threat) for threat, index in broken_by_threat(record, table).items() for i in index.tolist()}
    pairs = list(zip(witnesses["index"].tolist(), witnesses["attack"].tolist(), strict=True))
    found = [(i, threat_of(spec, record.threat)) for i, spec in pairs]
    fell = broken_by(table)
    survived = {i for i, maker in pairs if table["clean"][i] and not fell[maker][i]}
    for examples, what in (
        ({i for i, _ in wanted - set(found)}, "fell without a witness"),
        ({i for i, _ in set(found) - wanted}, "have a witness but are robust, or wrong already"),
        ({i for (i, _), times in Counter(found).items() if times > 1}, "have several witnesses"),
        (survived, "have a witness of an attack that they survived"),
    ):
        if examples:
            return Finding(name, "failed", f"{len(examples)} examples {what}, the first is {min(examples)}")
    return Finding(name, "passed", f"{len(found)} broken, {len(found)} witnesses")
