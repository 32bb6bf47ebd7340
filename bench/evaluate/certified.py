"""One certifier on one model: who is certified, how far, and at what cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from bench.core import registry
from bench.core.contracts import Certifier, frozen
from bench.core.errors import UserError
from bench.core.example_table import Table, accuracy, mean_radius
from bench.core.records import CertifierResult
from bench.core.specs import options_of, parse_spec
from bench.core.staged_attack import Stage
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.batch_results import Part, broken_in, seconds_in, warnings_in
from bench.evaluate.cascade import run_cascade
from bench.evaluate.witnesses import Evidence


@dataclass(frozen=True)
class Certified(Evidence):
    """columns: `certified/SPEC`, `radius/SPEC`, and `broken/SPEC`, `prediction/SPEC` where there are such."""

    result: CertifierResult


def make_certifiers(names: Sequence[str]) -> dict[str, Certifier]:
    """Certifiers by canonical spec; each at most once. All of them certify the record's threat model."""
    found: dict[str, Certifier] = {}
    for name in names:
        spec = parse_spec(name, registry.certifier)
        if not (inspect.isclass(spec.target) and issubclass(spec.target, Certifier)):
            raise UserError(f"certifier '{name}' is no subclass of bench.api.Certifier")
        if taken := {"norm", "eps"} & set(options_of(spec.target)):
            raise UserError(f"certifier '{name}' must not have an option {min(taken)}; it is given the threat model")
        certifier = spec.make()
        if certifier in found.values():
            raise UserError(f"certifier '{name}' is given twice; keep one")
        found[spec.text] = certifier
    return found


def check_certifier(certifier: Certifier, model: nn.Module, shape: tuple[int, ...], threat: ThreatModel) -> None:
    """UserError where a certifier cannot bound this model, on images of `shape` (C,H,W), or has not the norm."""
    with frozen(model):
        certifier.check_fits(model, shape, threat)


def measure_certifier(
    model: nn.Module,
    test: Split,
    certifier: Certifier,
    spec: str,
    *,
    threat: ThreatModel,
    clean: npt.NDArray[np.bool_],
    batch_size: int,
    seed: int,
    parts: Path | None = None,
    report: Callable[[int, str], None] | None = None,
) -> Certified:
    """Certify each example that the model gets right; each of all, where another classifier is certified (smoothing).

    With a folder `parts`, what is done is kept there, and found again by the next call.
    """
    right = np.ones_like(clean) if certifier.kind == "probabilistic" else clean
    done = [
        part
        for _, part in run_cascade(
            model, test, [Stage("", certifier)], name=f"certifier {spec}", threat=threat, right=right,
            batch_size=batch_size, seed=seed, parts=parts, report=report,
        )
    ]  # fmt: skip
    columns = _columns(spec, certifier, done, len(clean))
    proven, broken = accuracy(columns[f"certified/{spec}"]), columns.get(f"broken/{spec}")
    result = CertifierResult(
        certified_acc=proven.acc, ci95=proven.ci95, mean_radius=mean_radius(columns, spec), seconds=seconds_in(done),
        kind=certifier.kind, tolerance=max((float(part["tolerance"]) for part in done), default=0.0),
        broken=None if broken is None else int(broken.sum()), warnings=warnings_in(done),
    )  # fmt: skip
    return Certified(threat, columns, *broken_in(done), result)


def _columns(spec: str, certifier: Certifier, done: Sequence[Part], n: int) -> Table:
    columns: Table = {
        f"certified/{spec}": np.zeros(n, np.bool_),
        f"radius/{spec}": np.zeros(n, np.float32),
    }
    if certifier.kind == "probabilistic":
        columns[f"prediction/{spec}"] = np.zeros(n, np.int64)
    if any(part["refutes"] for part in done):
        columns[f"broken/{spec}"] = np.zeros(n, np.bool_)
    for key, column in columns.items():
        for part in done:
            column[part["index"]] = part[key.partition("/")[0]]
    return columns
