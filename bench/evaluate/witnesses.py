"""Measurements of attacks, certifiers and the bracket on a split, and the witnesses of all broken examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from bench.core.example_table import Table
from bench.core.records import AttackResult, Bracket, CertifierResult
from bench.core.threat import ThreatModel

Result = AttackResult | CertifierResult | Bracket
ResultT_co = TypeVar("ResultT_co", bound=Result, covariant=True)


@dataclass(frozen=True)
class Measurement(Generic[ResultT_co]):
    """The result of one attack, certifier or bracket on a test split.

    columns: of the per-example table. broken (M,): indices of the examples that it broke under `threat`;
    witnesses (M,C,H,W): the adversarial example of each. result: its entry in the record. proofs: of certified
    examples, by index.
    """

    threat: ThreatModel
    columns: Table
    broken: npt.NDArray[np.int64]
    witnesses: npt.NDArray[np.float32]
    result: ResultT_co
    proofs: Mapping[int, bytes] = field(default_factory=dict)


def collect_witnesses(measurements: Mapping[str, Measurement[Result]]) -> dict[str, npt.NDArray[Any]]:
    """Collect one adversarial example per broken example and threat model, from the first measurement that has one.

    index (M,), x_adv (M,C,H,W) float32, attack (M,) its source (a spec, or "bracket"); sorted by index.
    """
    first: dict[tuple[int, ThreatModel], tuple[npt.NDArray[np.float32], str]] = {}
    for source, measurement in measurements.items():
        for example, point in zip(measurement.broken.tolist(), measurement.witnesses, strict=True):
            first.setdefault((example, measurement.threat), (point, source))
    if not first:
        return {"index": np.zeros(0, np.int64), "x_adv": np.zeros(0, np.float32), "attack": np.zeros(0, "U1")}
    keys = sorted(first, key=lambda key: key[0])
    x_adv, attack = zip(*(first[key] for key in keys), strict=True)
    return {"index": np.array([example for example, _ in keys]), "x_adv": np.stack(x_adv), "attack": np.array(attack)}
