"""Checks that the per-example table agrees with the data set, with the model, and with itself.

Row i of a table is test example i, and each column has its type and length (bench/verify/run.py checks that).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core.contracts import frozen
from bench.core.errors import CheckError
from bench.core.example_table import Table, threat_of
from bench.core.records import Record
from bench.core.threat import TINY
from bench.datasets.split import Split
from bench.verify.report import Finding, finding_of

NEAR_TIE = 1e-4  # of the largest logit: on another device or in another batch, rounding may swap such near classes
ROUNDING = 1e-5  # of eps: distances are stored in float32


class Predictor(NamedTuple):
    """A run's model, its test images, and how many of them share a batch."""

    model: nn.Module
    test: Split
    batch_size: int


def check_labels(table: Table, labels: npt.NDArray[np.int64]) -> Finding:
    """Check that the labels of the table are those of the data set."""
    differ = np.flatnonzero(table["label"] != labels[: len(table["label"])]).tolist()
    evidence = f"all {len(table['label'])} are those of the data set"
    return finding_of(differ, "labels", "differ from the data set", evidence)


def check_predictions(predictor: Predictor, table: Table) -> Finding:
    """Check that the model predicts what the table says. A near tie may differ on another machine, and is a warning."""
    differ, no_ties = [], []
    prediction = torch.from_numpy(table["prediction"]).to(predictor.test.y.device)
    for rows in torch.arange(len(prediction), device=prediction.device).split(predictor.batch_size):
        logits = logits_of(predictor.model, predictor.test.take(rows).x)
        mismatch = logits.argmax(dim=1) != prediction[rows]
        differ += rows[mismatch].tolist()
        no_ties += rows[mismatch & (relative_gap(logits, prediction[rows]) > NEAR_TIE)].tolist()
    if differ and not no_ties:
        evidence = f"{len(differ)} differ, all near ties (logits within {NEAR_TIE:g}, relative), from {differ[0]} on"
        return Finding("predictions", "warning", evidence)
    evidence = f"a fresh forward pass repeats all {len(prediction)}"
    return finding_of(no_ties, "predictions", "differ from the model", evidence)


def check_distances(record: Record, table: Table) -> list[Finding]:
    """Check that `robust/SPEC` follows from `distance/SPEC`, for each minimum-norm attack."""
    findings = []
    for key in (key for key in table if key.startswith("distance/")):
        spec = key.removeprefix("distance/")
        robust = table.get(f"robust/{spec}")
        if robust is None:
            findings.append(Finding(key, "failed", f"there is no column 'robust/{spec}'"))
            continue
        ratio = table[key].astype(np.float64) / threat_of(spec, record.threat).eps
        contradicts = np.where(robust, ~(ratio > 1 - ROUNDING), table["clean"] & ~(ratio <= 1 + ROUNDING))
        evidence = "robust if and only if the distance exceeds eps"
        findings.append(finding_of(np.flatnonzero(contradicts).tolist(), key, "contradict 'robust'", evidence))
    return findings


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with frozen(model):
        logits: Tensor = model(x)
    if logits.dim() != 2 or len(logits) != len(x):
        raise CheckError(f"the model returns {tuple(logits.shape)} for {len(x)} images, not logits")
    return logits


def relative_gap(logits: Tensor, classes: Tensor) -> Tensor:
    """The largest logit minus that of `classes`, relative to the largest absolute one, (B,); inf if undefined."""
    defined = (classes >= 0) & (classes < logits.shape[1]) & logits.isfinite().all(dim=1)
    own = logits.gather(1, classes.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    gap = (logits.max(dim=1).values - own) / logits.abs().max(dim=1).values.clamp(min=TINY)
    return torch.where(defined, gap, torch.inf)
