"""The evidence of an evaluation: for each example that fell, a point that breaks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.example_table import Table
from bench.core.threat import ThreatModel


@dataclass(frozen=True)
class Evidence:
    """What one attack, certifier or bracket did to a test split.

    columns: of the table. broken: indices of the examples that it broke under `threat`, and the adversarial example of
    each.
    """

    threat: ThreatModel
    columns: Table
    broken: npt.NDArray[np.int64]
    witnesses: npt.NDArray[np.float32]


def witnesses_of(evidence: Mapping[str, Evidence]) -> dict[str, npt.NDArray[Any]]:
    """One adversarial example for each example and threat model that fell, from the first that found one.

    index (M,), x_adv (M,C,H,W) float32, attack (M,) what made it (a spec, or "bracket"); sorted by index.
    """
    rows = sorted(_first_to_break(evidence), key=lambda row: row[0])
    if not rows:
        return {"index": np.zeros(0, np.int64), "x_adv": np.zeros(0, np.float32), "attack": np.zeros(0, "U1")}
    return {
        "index": np.array([index for index, _, _ in rows]),
        "x_adv": np.stack([x_adv for _, x_adv, _ in rows]),
        "attack": np.array([maker for _, _, maker in rows]),
    }


def _first_to_break(evidence: Mapping[str, Evidence]) -> Iterator[tuple[int, npt.NDArray[np.float32], str]]:
    seen: set[tuple[int, ThreatModel]] = set()
    for maker, found in evidence.items():
        for index, x_adv in zip(found.broken.tolist(), found.witnesses, strict=True):
            if (index, found.threat) not in seen:
                seen.add((index, found.threat))
                yield index, x_adv, maker
