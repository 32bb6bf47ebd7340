"""The one scheduler: stages run on the examples that are still open, cheap before dear, in full batches."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Attack, Batch, Stage, frozen, has_paid
from bench.core.errors import UserError
from bench.core.passes import watch
from bench.core.records import read_arrays, write_arrays
from bench.datasets.split import Split
from bench.evaluate.clean import predict_with_margin

Part = dict[str, npt.NDArray[Any]]  # what one stage did to one batch
PART = ("index", "broken", "witnesses", "distance", "margin", "spent", "fell", "passes", "seconds", "warnings")


def run_cascade(
    model: nn.Module,
    test: Split,
    stages: Sequence[Stage],
    *,
    name: str,
    right: npt.NDArray[np.bool_],
    batch_size: int,
    seed: int,
    parts: Path | None = None,
    report: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[Stage, Part]]:
    """Run each stage on what the earlier ones left standing of the examples that the model gets `right`.

    Before a stage its examples are packed into batches anew, in test order, so that the device stays full. A batch's
    randomness depends on the seed, the name, the stage and its number alone. With a folder `parts`, what is done is
    kept there, and a later call finds it again. report(examples, stage) is told of each finished batch.
    """
    index = torch.from_numpy(np.flatnonzero(right))
    lowest = torch.full((len(index),), torch.inf)  # of each example's margins, at the worst point of all stages
    paid: dict[str, bool] = {}
    for stage in stages:
        if len(index) == 0 or not stage.is_due(paid):
            continue
        chosen = stage.choose(lowest)
        there, falls = lowest.clone(), torch.zeros(len(index), dtype=torch.bool)
        for number, rows in enumerate(chosen.split(batch_size)):
            key = f"{name}/{stage.name}/{number}"
            batch = test.take(index[rows].to(test.y.device))
            part = _kept(parts, key, batch)
            if part is None:
                part = attack_batch(model, stage.attack, batch, seeds.generator(batch.x.device, seed, key))
                if parts is not None:
                    write_arrays(_path(parts, key), part)
            falls[rows] = torch.from_numpy(part["broken"])
            there[rows] = torch.minimum(there[rows], torch.from_numpy(part["margin"]))
            yield stage, part
            if report is not None:
                report(len(rows), stage.name)
        paid[stage.name] = has_paid(int(falls.sum()), len(chosen))
        index, lowest = index[~falls], there[~falls]


def attack_batch(model: nn.Module, attack: Attack, batch: Batch, generator: torch.Generator) -> Part:
    """One attack on one batch: who fell, by what a fresh forward pass says, with what evidence and at what cost."""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(model, batch.x, batch.y, attack.threat) as passes:
            x_adv = attack(model, batch, generator=generator)
            with frozen(model):
                found, margin = predict_with_margin(model, x_adv, batch.y)
    wrong = found != batch.y
    distance = attack.threat.distance(x_adv, batch.x)
    distance = torch.where(wrong, distance, torch.inf) if attack.minimum_norm else distance
    inside = attack.threat.contains(x_adv, batch.x)
    broken = wrong & inside
    spent = passes.total()
    return {
        "index": _array(batch.index),
        "broken": _array(broken),
        "witnesses": _array(x_adv[broken]),
        "distance": _array(distance.float()),
        "margin": _array(torch.where(inside, margin, torch.inf)),
        "spent": _array(spent),
        "fell": _array(torch.where(broken & (passes.fell > 0), passes.fell, spent)),
        "passes": np.array([passes.forwards, passes.backwards]),
        "seconds": np.array(time.perf_counter() - began),
        "warnings": np.array(sorted({str(each.message) for each in caught}), dtype=np.str_),
    }


def _array(values: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = values.cpu().numpy()
    return found


def _path(parts: Path, key: str) -> Path:
    return parts / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _kept(parts: Path | None, key: str, batch: Batch) -> Part | None:
    """What is kept of a batch; None where there is nothing, or nothing that can be used."""
    if parts is None or not _path(parts, key).exists():
        return None
    try:
        part = read_arrays(_path(parts, key))
    except UserError:
        return None
    fits = set(part) == set(PART) and np.array_equal(part["index"], batch.index.cpu().numpy())
    return part if fits else None
