"""Is the evidence of a finished evaluation what its record says? Every check is a finding of its own.

Row i of a table is test example i, and each column is of its type and length (bench/verify/run.py sees to it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Attack, frozen
from bench.core.errors import CheckError
from bench.core.example_table import (
    Flags,
    Table,
    Threat,
    accuracy,
    broken_by,
    certified,
    own_specs,
    survivors,
    threat_of,
)
from bench.core.records import Record
from bench.datasets.split import Split
from bench.evaluate.clean import predict
from bench.verify.leakage import SIZES, Scan, by_batch_position, by_test_order

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
        logits = logits_of(model, test.take(rows).x)
        other = logits.argmax(dim=1) != prediction[rows]
        differ += rows[other].tolist()
        beyond += rows[other & (lag_of(logits, prediction[rows]) > NEAR_TIE)].tolist()
    if beyond:
        evidence = f"{len(beyond)} are not the model's, the first at test example {beyond[0]}"
        return Finding("predictions", "failed", evidence)
    if differ:
        evidence = f"{len(differ)} differ, all near ties (logits within {NEAR_TIE:g}, relative), from {differ[0]} on"
        return Finding("predictions", "warning", evidence)
    return Finding("predictions", "passed", f"a fresh forward pass gives all {len(prediction)} again")


def all_but(examples: list[int], name: str, what: str, evidence: str) -> Finding:
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
        findings.append(all_but(np.flatnonzero(denied).tolist(), key, "contradict 'robust'", evidence))
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
    for number, rows in enumerate(batches(n, batch_size)):
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


def batches(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with frozen(model):
        logits = model(x)
    if logits.dim() != 2 or len(logits) != len(x):
        raise CheckError(f"the model returns {tuple(logits.shape)} for {len(x)} images, not logits")
    return logits


def lag_of(logits: Tensor, classes: Tensor) -> Tensor:
    """How far the logit of a class is behind the largest, relative to the largest size, (B,); inf where undefined."""
    known = (classes >= 0) & (classes < logits.shape[1]) & logits.isfinite().all(dim=1)
    own = logits.gather(1, classes.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    lag = (logits.max(dim=1).values - own) / logits.abs().max(dim=1).values.clamp(min=1e-30)
    return torch.where(known, lag, torch.inf)
