"""What an attack, a certifier or the bracket measured on a split, and the witnesses of all broken examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.example_table import Table
from bench.core.threat import ThreatModel


@dataclass(frozen=True)
class Measurement:
    """The result of one attack, certifier or bracket on a test split.

    columns: of the per-example table. broken (M,): indices of the examples that it broke under `threat`;
    witnesses (M,C,H,W): the adversarial example of each.
    """

    threat: ThreatModel
    columns: Table
    broken: npt.NDArray[np.int64]
    witnesses: npt.NDArray[np.float32]


def collect_witnesses(measurements: Mapping[str, Measurement]) -> dict[str, npt.NDArray[Any]]:
    """One adversarial example for each broken example and threat model, from the first measurement that has one.

    index (M,), x_adv (M,C,H,W) float32, attack (M,) its source (a spec, or "bracket"); sorted by index.
    """
    rows = sorted(_first_to_break(measurements), key=lambda row: row[0])
    if not rows:
        return {"index": np.zeros(0, np.int64), "x_adv": np.zeros(0, np.float32), "attack": np.zeros(0, "U1")}
    index, x_adv, source = zip(*rows, strict=True)
    return {"index": np.array(index), "x_adv": np.stack(x_adv), "attack": np.array(source)}


def _first_to_break(measurements: Mapping[str, Measurement]) -> Iterator[tuple[int, npt.NDArray[np.float32], str]]:
    broken: set[tuple[int, ThreatModel]] = set()
    for source, measurement in measurements.items():
        for index, x_adv in zip(measurement.broken.tolist(), measurement.witnesses, strict=True):
            if (index, measurement.threat) not in broken:
                broken.add((index, measurement.threat))
                yield index, x_adv, source
