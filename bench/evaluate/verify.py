"""Is the evidence of a finished evaluation what its record says? Every check is a finding of its own.

Row i of a table is test example i, and each column is of its type and length (bench/verification.py sees to it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Attack, frozen
from bench.core.errors import CheckError
from bench.core.records import Record
from bench.core.table import Flags, Table, Threat, accuracy, broken_by, certified, own_specs, survivors, threat_of
from bench.core.threat import ThreatModel, checked_norm
from bench.datasets.split import Split
from bench.evaluate.clean import predict
from bench.evaluate.leakage import SIZES, Scan, by_batch_position, by_test_order

Outcome = Literal["passed", "failed", "warning", "not checkable"]
Witnesses = dict[str, npt.NDArray[Any]]

NEAR_TIE = 1e-4  # of the largest logit: another device, or another batch, may round a class past one so near
ROUNDING = 1e-5  # of eps: a distance is kept in float32
TOLERATED = 0.05  # share of the claimed-robust examples that a stronger attack may break
SUSPICIOUS, STRONG = 0.01, 1e-4  # p of a leak


@dataclass(frozen=True)
class Finding:
    """What one check found, with one line of evidence.

    warning: nothing contradicts the record, but somebody should look. not checkable: what the check needs is missing.
    """

    name: str
    outcome: Outcome
    evidence: str


def broken_by_threat(record: Record, table: Table) -> dict[Threat, npt.NDArray[np.int64]]:
    """For each threat model that was tried: the examples that are right and fell to something under it."""
    fell: dict[Threat, list[Flags]] = {}
    for maker, column in broken_by(table).items():
        fell.setdefault(threat_of(maker, record.threat), []).append(column)
    return {threat: np.flatnonzero(np.logical_or.reduce(columns)) for threat, columns in fell.items()}


def check_labels(table: Table, labels: npt.NDArray[np.int64]) -> Finding:
    """Are the table's labels those of the data set?"""
    wrong = np.flatnonzero(table["label"] != labels[: len(table["label"])])
    if len(wrong):
        evidence = f"{len(wrong)} labels are not the data set's, the first at test example {wrong[0]}"
        return Finding("labels", "failed", evidence)
    return Finding("labels", "passed", f"all {len(table['label'])} are the data set's")


def check_predictions(model: nn.Module, test: Split, table: Table, batch_size: int) -> Finding:
    """Does the model predict what the table says? Near ties may come out differently elsewhere, and warn."""
    differ, beyond = [], []
    prediction = torch.from_numpy(table["prediction"]).to(test.y.device)
    for rows in torch.arange(len(prediction), device=test.y.device).split(batch_size):
        logits = _logits(model, test.take(rows).x)
        other = logits.argmax(dim=1) != prediction[rows]
        differ += rows[other].tolist()
        beyond += rows[other & (_lag(logits, prediction[rows]) > NEAR_TIE)].tolist()
    if beyond:
        evidence = f"{len(beyond)} are not the model's, the first at test example {beyond[0]}"
        return Finding("predictions", "failed", evidence)
    if differ:
        evidence = f"{len(differ)} differ, all near ties (logits within {NEAR_TIE:g}, relative), from {differ[0]} on"
        return Finding("predictions", "warning", evidence)
    return Finding("predictions", "passed", f"a fresh forward pass gives all {len(prediction)} again")


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
    index, points, batches = witnesses["index"], witnesses["x_adv"], _by_threat(record, witnesses)
    judged = [judge(model, test, threat, index[of], points[of], batch_size) for threat, of in batches]
    far = [i for each in judged for i in each.index[each.far].tolist()]
    out_of_box = [i for each in judged for i in each.index[each.out_of_box].tolist()]
    right = [i for each in judged for i in each.index[each.right].tolist()]
    ties = sum(int(each.tie.sum()) for each in judged)
    farthest = max(float(each.distance.max()) for each in judged)
    return [
        complete,
        _all_but(far, WITNESS_CHECKS[1], "lie outside", f"the farthest is at {farthest:.7f} eps"),
        _all_but(out_of_box, WITNESS_CHECKS[2], "leave [0, 1]", f"pixels from {points.min():g} to {points.max():g}"),
        Finding(WITNESS_CHECKS[3], "warning", f"{ties} are near ties that the model now gets right")
        if ties and not right
        else _all_but(right, WITNESS_CHECKS[3], "are classified right", f"all {len(index)} are"),
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
    for rows in _batches(len(index), batch_size):
        batch, points = test.take(torch.from_numpy(index[rows]).to(where)), torch.from_numpy(x_adv[rows]).to(where)
        logits = _logits(model, points)
        correct = (logits.argmax(dim=1) == batch.y) | ~logits.isfinite().all(dim=1)
        other = logits.scatter(1, batch.y[:, None], -torch.inf).argmax(dim=1)
        tie = correct & (_lag(logits, other) <= NEAR_TIE)
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


def _all_but(examples: list[int], name: str, what: str, evidence: str) -> Finding:
    if examples:
        return Finding(name, "failed", f"{len(examples)} {what}, the first of test example {min(examples)}")
    return Finding(name, "passed", evidence)


def check_distances(record: Record, table: Table) -> list[Finding]:
    """Does `robust/SPEC` follow from `distance/SPEC`, for each minimum-norm attack?"""
    findings = []
    for key in (key for key in table if key.startswith("distance/")):
        spec = key.removeprefix("distance/")
        robust = table.get(f"robust/{spec}")
        if robust is None or table[key].shape != robust.shape:
            findings.append(Finding(key, "failed", f"column '{key}' has no column 'robust/{spec}' that it fits"))
            continue
        ratio = table[key].astype(np.float64) / threat_of(spec, record.threat).eps
        denied = np.where(robust, ~(ratio > 1 - ROUNDING), table["clean"] & ~(ratio <= 1 + ROUNDING))
        evidence = "robust exactly where the distance is beyond eps"
        findings.append(_all_but(np.flatnonzero(denied).tolist(), key, "contradict 'robust'", evidence))
    return findings


def attack_again(
    model: nn.Module, test: Split, table: Table, attack: Attack, *, sample: int, seed: int, batch_size: int
) -> Finding:
    """Attack a random sample of the examples that are claimed robust, under the record's threat model (the attack's).

    That a stronger attack breaks some narrows the bracket and is a warning. It is a failure where the 95 %
    Clopper-Pearson interval of the share that falls lies above TOLERATED: the claim was not an honest bound. So it is
    where one of them was certified.
    """
    name = "attacked again"
    proven = certified(table)
    if not own_specs(table) and "status" not in table and not proven.any():
        return Finding(name, "not checkable", "no attack ran under the record's threat model, so nothing is claimed")
    claimed = np.flatnonzero(survivors(table) if own_specs(table) or "status" in table else proven)
    if not len(claimed):
        return Finding(name, "passed", "no example is claimed robust")
    n = min(sample, len(claimed))
    chosen = np.sort(np.random.default_rng(seed).choice(claimed, n, replace=False))
    fell = np.zeros(n, dtype=np.bool_)
    for number, rows in enumerate(_batches(n, batch_size)):
        batch = test.take(torch.from_numpy(chosen[rows]).to(test.y.device))
        x_adv = attack(model, batch, generator=seeds.generator(batch.x.device, seed, "verify", number))
        with frozen(model):
            broken = (predict(model, x_adv) != batch.y) & attack.threat.contains(x_adv, batch.x)
        fell[rows] = broken.cpu().numpy()
    untrue = chosen[fell & proven[chosen]]
    if len(untrue):
        return Finding(name, "failed", f"{len(untrue)} certified examples fell, the first is test example {untrue[0]}")
    low = accuracy(fell).ci95[0]
    evidence = (
        f"{fell.sum()} of {n} fell, so of all {len(claimed)} claimed robust at most {_upper(fell):.1%} would (95 %)"
    )
    outcome: Outcome = "failed" if low > TOLERATED else "warning" if fell.any() else "passed"
    return Finding(name, outcome, f"{evidence}; the first is {chosen[fell][0]}" if fell.any() else evidence)


def _upper(hits: npt.NDArray[np.bool_]) -> float:
    """The exact one-sided 95 % upper bound on the share that `hits` were drawn from."""
    from scipy.special import betaincinv

    n, k = len(hits), int(hits.sum())
    return float(betaincinv(k + 1, n - k, 0.95)) if k < n else 1.0


LEAK_CHECKS = ("error by position in the batch", "error by position in the test order")


def check_leakage(table: Table, batch_size: int) -> list[Finding]:
    """Does the model err less where a training loop may have touched the test set?

    By position in the batch there is no honest reason to, so strong evidence is a failure. By position in the test
    order there is one, that a data set is not shuffled, so it is a warning at most.
    """
    wrong, label = ~table["clean"], table["label"]
    hint = "; other models of the data set may show the same, for it may be ordered"
    return [
        _leak(
            LEAK_CHECKS[0], by_batch_position(wrong, label, (*SIZES, batch_size)), "positions {} to {} of each {}",
            {"failed": STRONG, "warning": SUSPICIOUS},
        ),
        _leak(LEAK_CHECKS[1], by_test_order(wrong, label), "parts {} to {} of {}", {"warning": STRONG}, hint),
    ]  # fmt: skip


def _leak(name: str, scan: Scan | None, place: str, levels: Mapping[Outcome, float], hint: str = "") -> Finding:
    """levels: the outcomes for a p below so much, the worst first."""
    if scan is None:
        return Finding(name, "not checkable", "too few examples")
    where = place.format(scan.first, scan.last - 1, scan.size)
    evidence = f"{scan.inside:.2%} wrong at {where}, {scan.outside:.2%} elsewhere, p = {scan.p:.2g}"
    for outcome, level in levels.items():
        if scan.p < level:
            return Finding(name, outcome, evidence + hint)
    return Finding(name, "passed", evidence)


def _batches(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with frozen(model):
        logits = model(x)
    if logits.dim() != 2 or len(logits) != len(x):
        raise CheckError(f"the model returns {tuple(logits.shape)} for {len(x)} images, not logits")
    return logits


def _lag(logits: Tensor, classes: Tensor) -> Tensor:
    """How far the logit of a class is behind the largest, relative to the largest size, (B,); inf where undefined."""
    known = (classes >= 0) & (classes < logits.shape[1]) & logits.isfinite().all(dim=1)
    own = logits.gather(1, classes.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    lag = (logits.max(dim=1).values - own) / logits.abs().max(dim=1).values.clamp(min=1e-30)
    return torch.where(known, lag, torch.inf)
