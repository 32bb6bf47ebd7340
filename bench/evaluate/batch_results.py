"""What one stage does to one batch, and how that is kept until the run is finished."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core.contracts import Attack, Batch, Certifier, frozen
from bench.core.errors import UserError
from bench.core.files import read_arrays, write_arrays
from bench.core.passes import count_passes, watch
from bench.core.threat import ThreatModel
from bench.evaluate.clean import predict_with_margin

Part = dict[str, npt.NDArray[Any]]
COMMON = ("index", "certified", "broken", "witnesses", "passes", "seconds", "warnings")
KEYS = {
    Attack: {*COMMON, "margin", "points", "distance", "spent", "fell"},
    Certifier: {*COMMON, "radius", "tolerance", "prediction", "refutes"},
}


def attack_batch(model: nn.Module, attack: Attack, batch: Batch, generator: torch.Generator, *, points: bool) -> Part:
    """One attack on one batch: who fell, by what a fresh forward pass says, with what evidence and at what cost.

    points: keep where the attack ended for all examples, not only for those that it broke.
    """
    began = time.perf_counter()
    with _warnings() as caught, watch(model, batch.x, batch.y, attack.threat) as passes:
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
        "certified": np.zeros(len(batch), np.bool_),
        "broken": _array(broken),
        "witnesses": _array(x_adv[broken]),
        "distance": _array(distance.float()),
        "margin": _array(torch.where(inside, margin, torch.inf)),
        "points": _array(x_adv if points else x_adv[:0]),
        "spent": _array(spent),
        "fell": _array(torch.where(broken & (passes.fell > 0), passes.fell, spent)),
        "passes": np.array([passes.forwards, passes.backwards]),
        "seconds": np.array(time.perf_counter() - began),
        "warnings": _texts(caught),
    }


def certify_batch(
    model: nn.Module,
    certifier: Certifier,
    batch: Batch,
    threat: ThreatModel,
    generator: torch.Generator,
    *,
    hint: Tensor | None = None,
) -> Part:
    """One certifier on one batch: who is certified and how far, and who fell to a counterexample that it found."""
    began = time.perf_counter()
    with _warnings() as caught, count_passes(model) as passes:
        found = certifier(model, batch, threat, generator=generator, hint=hint)
    refutes = found.broken is not None and found.witness is not None
    broken = found.broken if found.broken is not None and refutes else torch.zeros_like(found.certified)
    return {
        "index": _array(batch.index),
        "certified": _array(found.certified),
        "broken": _array(broken),
        "witnesses": _array(batch.x[:0] if found.witness is None else found.witness[broken].to(batch.x.dtype)),
        "radius": _array(found.radius.float()),
        "tolerance": np.array(float(torch.as_tensor(found.tolerance, dtype=torch.float64).max())),
        "prediction": _array(batch.y[:0] if found.prediction is None else found.prediction),
        "refutes": np.array(refutes),
        "passes": np.array([passes.forwards, passes.backwards]),
        "seconds": np.array(time.perf_counter() - began),
        "warnings": _texts(caught),
    }


def broken_in(done: Sequence[Part]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The indices of all examples that fell in these parts, and the adversarial example of each."""
    if not done:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    index = np.concatenate([part["index"][part["broken"]] for part in done])
    return index, np.concatenate([part["witnesses"] for part in done])


def warnings_in(done: Sequence[Part]) -> list[str]:
    return sorted({str(text) for part in done for text in part["warnings"]})


def passes_in(done: Sequence[Part]) -> tuple[int, int]:
    """Forwards and backwards."""
    return int(sum(part["passes"][0] for part in done)), int(sum(part["passes"][1] for part in done))


def seconds_in(done: Sequence[Part]) -> float:
    return round(float(sum(part["seconds"] for part in done)), 3)


def keep(parts: Path | None, key: str, part: Part) -> None:
    if parts is not None:
        write_arrays(_path(parts, key), part)


def kept(parts: Path | None, key: str, batch: Batch, method: Attack | Certifier) -> Part | None:
    """What is kept of a batch; None where there is nothing, or nothing that can be used."""
    if parts is None or not _path(parts, key).exists():
        return None
    try:
        part = read_arrays(_path(parts, key))
    except UserError:
        return None
    wanted = KEYS[Attack if isinstance(method, Attack) else Certifier]
    return part if set(part) == wanted and np.array_equal(part["index"], _array(batch.index)) else None


def _path(parts: Path, key: str) -> Path:
    return parts / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


@contextmanager
def _warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def _texts(caught: Sequence[warnings.WarningMessage]) -> npt.NDArray[np.str_]:
    return np.array(sorted({str(each.message) for each in caught}), dtype=np.str_)


def _array(values: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = values.detach().cpu().numpy()
    return found
