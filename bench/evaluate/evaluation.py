"""A whole evaluation: clean accuracy, attacks, certifiers, the bracket, witnesses, verdict and consistency checks."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from bench.core.attack_specs import PlannedAttack
from bench.core.classifier import as_classifier
from bench.core.columns import columns
from bench.core.contracts import Certifier
from bench.core.counts import counted
from bench.core.errors import UserError
from bench.core.example_table import BRACKET, Table, accuracy, survivors
from bench.core.progress import Progress
from bench.core.records import VERDICTS, AttackResult, Bracket, CertifierResult, Sanity
from bench.datasets.split import Split
from bench.evaluate.attacked import measure_attack
from bench.evaluate.bracket import BracketPlan, measure_bracket
from bench.evaluate.certificate_audit import audit_certificates
from bench.evaluate.certified import measure_certifier
from bench.evaluate.clean import measure_clean
from bench.evaluate.context import EvalContext, MissingBatches
from bench.evaluate.invariants import check_certificates, check_evaluation
from bench.evaluate.proofs import Proofs, collect_proofs
from bench.evaluate.witnesses import Measurement, Result, collect_witnesses
from bench.sanity.verdict import form_verdict

Method = PlannedAttack | Certifier | BracketPlan


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The per-example table and all results; printed as a short summary.

    audited: how many certified examples were attacked. proofs: None without a certifier.
    """

    table: Table
    attacks: dict[str, AttackResult]
    witnesses: dict[str, npt.NDArray[Any]]
    sanity: Sanity
    certifiers: dict[str, CertifierResult] = field(default_factory=dict)
    bracket: Bracket | None = None
    audited: int = 0
    proofs: Proofs | None = None

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracy, in [0, 1]: "clean", under each attack and certified by each certifier, by their specs."""
        robust = {spec: attack.robust_acc for spec, attack in self.attacks.items()}
        certified = {spec: result.certified_acc for spec, result in self.certifiers.items()}
        return {"clean": accuracy(self.table["clean"]).acc} | robust | certified

    def __repr__(self) -> str:
        """A line for each accuracy in percent with its 95 % interval, and the verdict with its reasons."""
        rows = [("clean", _with_interval(self.table["clean"]))]
        rows += [(spec, _with_interval(self.table[f"robust/{spec}"])) for spec in self.attacks]
        rows += [(f"certified by {spec}", _with_interval(self.table[f"certified/{spec}"])) for spec in self.certifiers]
        if self.bracket is not None:
            certified, attacked = f"{self.bracket.certified_acc:.1%}", f"{self.bracket.robust_acc:.1%}"
            rows.append((BRACKET, f"{certified} certified, {attacked} attacked, {self.bracket.open} open"))
        if len(self.attacks) + (self.bracket is not None) > 1:
            rows.append(("worst of all attacks", _with_interval(survivors(self.table))))
        title = counted(len(self.table["index"]), "example")
        verdict = "\n  ".join([f"verdict: {VERDICTS[self.sanity.verdict]}", *self.sanity.reasons])
        return f"{title}\n{columns(rows, indent='  ')}\n{verdict}"


def _with_interval(flags: npt.NDArray[np.bool_]) -> str:
    found = accuracy(flags)
    return f"{found.acc:.1%}  [{found.ci95[0]:.1%}, {found.ci95[1]:.1%}]"


def evaluate_split(
    context: EvalContext,
    attacks: Mapping[str, PlannedAttack],
    *,
    certifiers: Mapping[str, Certifier] | None = None,
    bracket: BracketPlan | None = None,
) -> Evaluation:
    """Measure a model on a split. CheckError if the result contradicts itself.

    UserError if modules of the model were left in train mode and it has to be certified.
    """
    _check_modes(context, certifies=bool(certifiers) or bracket is not None)
    table = measure_clean(context.model, context.test, context.batch_size)
    measured: dict[str, Measurement[Result]] = {}

    def measure(source: str, method: Method) -> None:
        measured[source] = measurement = _measure(context, source, method, table)
        table.update(measurement.columns)
        for warning in measurement.result.warnings if context.show_progress else ():
            print(f"warning ({source}): {warning}", file=sys.stderr)

    for source, method in _methods(attacks, certifiers or {}):
        measure(source, method)
    check_certificates(table)
    if bracket is not None:
        measure(BRACKET, bracket)
    audited = audit_certificates(context, table)
    witnesses = collect_witnesses(measured)
    stages = [] if bracket is None else [stage.method for stage in bracket.stages]
    proofs = collect_proofs(context, table, measured, [*(certifiers or {}).values(), *stages])
    results = {source: measurement.result for source, measurement in measured.items()}
    sanity = form_verdict(
        context.model, context.test, context.threat, table, seed=context.seed, batch_size=context.batch_size,
        results=results,
    )  # fmt: skip
    threats = {source: measurement.threat for source, measurement in measured.items()}
    stochastic = any(check.name == "stochastic" and check.outcome != "passed" for check in sanity.checks)
    check_evaluation(context, table, witnesses, threats, deterministic=not stochastic)
    of_attacks = {spec: result for spec, result in results.items() if isinstance(result, AttackResult)}
    of_certifiers = {spec: result for spec, result in results.items() if isinstance(result, CertifierResult)}
    of_bracket = next((result for result in results.values() if isinstance(result, Bracket)), None)
    return Evaluation(table, of_attacks, witnesses, sanity, of_certifiers, of_bracket, audited, proofs)


def evaluate_shard(
    context: EvalContext,
    attacks: Mapping[str, PlannedAttack],
    *,
    certifiers: Mapping[str, Certifier],
    bracket: BracketPlan | None = None,
) -> bool:
    """Store the batches of the context's shard whose earlier stages are stored; returns whether nothing was missing.

    A stage needs the results of the stages before it. So shards work in rounds until none has anything left to do, and
    each round finishes at least one stage of every attack. Then evaluate_split only reads the stored results.
    """
    _check_modes(context, certifies=bool(certifiers) or bracket is not None)
    table = measure_clean(context.model, context.test, context.batch_size)
    missing = False
    for source, method in _methods(attacks, certifiers):
        try:
            table.update(_measure(context, source, method, table).columns)
        except MissingBatches:
            missing = True
    if bracket is not None and not missing:  # it begins with what all of them have decided
        try:
            _measure(context, BRACKET, bracket, table)
        except MissingBatches:
            missing = True
    return not missing


def _methods(
    attacks: Mapping[str, PlannedAttack], certifiers: Mapping[str, Certifier]
) -> list[tuple[str, PlannedAttack | Certifier]]:
    return [*attacks.items(), *certifiers.items()]


def _check_modes(context: EvalContext, *, certifies: bool) -> None:
    """UserError if modules were left in train mode and the model has to be certified; else a warning."""
    if left := as_classifier(context.model).random_modules:
        names = shorten(", ".join(left), 80)
        if certifies:
            raise UserError(f"a model with modules in train mode cannot be certified ({names}); call model.eval()")
        text = f"modules in train mode inside of a model in eval mode stay so ({names})"
        if context.show_progress:
            print(f"warning: {text}", file=sys.stderr)
        else:
            warnings.warn(text, stacklevel=3)


def _measure(context: EvalContext, source: str, method: Method, table: Table) -> Measurement[Result]:
    """Measure an attack, a certifier or the bracket, given the columns of those before it."""
    total, what = int(table["clean"].sum()), source
    if isinstance(method, PlannedAttack):
        what = f"attack {source}"
    elif isinstance(method, Certifier):
        what = f"certifier {source}"
    if isinstance(method, BracketPlan) or (isinstance(method, Certifier) and method.kind == "probabilistic"):
        total = len(context.test)
    with Progress(what, total, "example", show=context.show_progress) as progress:
        if isinstance(method, PlannedAttack):
            return measure_attack(context, source, method, table["clean"], progress.advance)
        if isinstance(method, Certifier):
            return measure_certifier(context, source, method, table["clean"], progress.advance)
        return measure_bracket(context, method, table, progress.advance)


def evaluate_clean(model: nn.Module, test: Split, *, seed: int, batch_size: int) -> Evaluation:
    """Measure clean accuracy only, with a verdict from the checks that need no attack."""
    table = measure_clean(as_classifier(model), test, batch_size)
    sanity = form_verdict(model, test, None, table, seed=seed, batch_size=batch_size, results={})
    return Evaluation(table, {}, collect_witnesses({}), sanity)
