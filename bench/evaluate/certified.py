"""Runs one certifier on one model: the certified examples, their radii and the cost."""

import inspect
from collections.abc import Sequence

import numpy as np
from torch import nn

from bench.core import registry
from bench.core.contracts import Certifier, frozen
from bench.core.errors import UserError
from bench.core.example_table import Flags, Table, accuracy, mean_radius
from bench.core.failures import failures_of
from bench.core.records import CertifierResult
from bench.core.spec_text import list_of_specs, split_spec
from bench.core.specs import options_of, parse_spec
from bench.core.staged_attack import Stage
from bench.core.threat import ThreatModel
from bench.evaluate.batch_results import CertifierBatch, broken_in, proofs_in, seconds_in, warnings_in
from bench.evaluate.cascade import Report, run_cascade
from bench.evaluate.context import EvalContext
from bench.evaluate.witnesses import Measurement

# Certifiers that take few examples at a time: slow ones, whose results are stored batch by batch, and `exact`, whose
# gradient steps amplify the rounding errors, which differ with the number of examples in a batch.
BATCHES = {"alpha-crown": 32, "bab": 1, "exact": 1}


def make_certifiers(names: str | Sequence[str]) -> dict[str, Certifier]:
    """Build certifiers from specs, or from one comma-separated text; the keys are canonical specs, each at most once.

    All of them certify the record's threat model.
    """
    certifiers: dict[str, Certifier] = {}
    for name in list_of_specs(names):
        spec = parse_spec(name, registry.certifier)
        if not (inspect.isclass(spec.target) and issubclass(spec.target, Certifier)):
            raise UserError(f"certifier '{name}' is not a subclass of bench.api.Certifier")
        if reserved := {"norm", "eps"} & set(options_of(spec.target)):
            raise UserError(f"certifier '{name}' must not have an option {min(reserved)}; it gets the threat model")
        certifier = spec.make()
        if certifier in certifiers.values():
            raise UserError(f"certifier '{name}' is given twice; keep one")
        certifiers[spec.text] = certifier
    return certifiers


def check_certifier(certifier: Certifier, model: nn.Module, shape: tuple[int, ...], threat: ThreatModel) -> None:
    """UserError if a certifier does not support the norm, or cannot bound this model on images of `shape` (C,H,W)."""
    model = certifier.model_view(model)
    with failures_of(f"certifier {type(certifier).__name__}"), frozen(model):
        certifier.check_fits(model, shape, threat)


def measure_certifier(
    context: EvalContext, spec: str, certifier: Certifier, clean: Flags, report: Report | None = None
) -> Measurement[CertifierResult]:
    """Certify each example of `clean` (N,), the correctly classified ones.

    A probabilistic certifier certifies a classifier of its own (smoothing), and is run on all examples. The columns
    are `certified/SPEC`, `radius/SPEC`, and `broken/SPEC` and `prediction/SPEC` if the certifier gives them.
    """
    examples = np.ones_like(clean) if certifier.kind == "probabilistic" else clean
    stage = Stage("", certifier, batch=BATCHES.get(split_spec(spec).name))
    cascade = run_cascade(context, [stage], name=f"certifier {spec}", examples=examples, report=report)
    batches = [result for _, result in cascade if isinstance(result, CertifierBatch)]
    columns = _columns(spec, certifier, batches, len(clean))
    share, broken = accuracy(columns[f"certified/{spec}"]), columns.get(f"broken/{spec}")
    result = CertifierResult(
        certified_acc=share.acc, ci95=share.ci95, mean_radius=mean_radius(columns, spec), seconds=seconds_in(batches),
        kind=certifier.kind, tolerance=max((batch.tolerance for batch in batches), default=0.0),
        broken=None if broken is None else int(broken.sum()), warnings=warnings_in(batches),
    )  # fmt: skip
    return Measurement(context.threat, columns, *broken_in(batches), result, proofs_in(batches))


def _columns(spec: str, certifier: Certifier, batches: Sequence[CertifierBatch], n: int) -> Table:
    kinds: dict[str, type[np.generic]] = {"certified": np.bool_, "radius": np.float32}
    if certifier.kind == "probabilistic":
        kinds["prediction"] = np.int64
    if any(batch.finds_counterexamples for batch in batches):
        kinds["broken"] = np.bool_
    columns: Table = {}
    for name, kind in kinds.items():
        columns[f"{name}/{spec}"] = column = np.zeros(n, kind)
        for batch in batches:
            column[batch.index] = getattr(batch, name)
    return columns
