"""The bracket [certified, attacked]: attacks and certifiers in turn, until every example is decided or time is up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import nn

from bench.core import registry
from bench.core.attack_specs import PlannedAttack
from bench.core.contracts import Attack, Certifier
from bench.core.errors import UserError
from bench.core.example_table import BRACKET, Flags, Table, accuracy, broken_by, certificates, own_specs
from bench.core.records import Bracket, BracketStage
from bench.core.staged_attack import Stage, StagedAttack
from bench.core.threat import ThreatModel
from bench.evaluate.batch_results import BatchResult, broken_in, proofs_in, seconds_in, warnings_in
from bench.evaluate.cascade import Report, run_cascade
from bench.evaluate.certificate_audit import STRONG_ATTACK
from bench.evaluate.certified import check_certifier
from bench.evaluate.context import EvalContext
from bench.evaluate.witnesses import Measurement

ORDER = ("fgsm", "ibp", "fast-lin", "crown", STRONG_ATTACK, "alpha-crown", "exact")
BATCHES = {"alpha-crown": 32, "exact": 1}  # small, so that a slow stage can stop when the budget is spent
ROUNDS = (2.0, 10.0, 60.0)  # seconds per example: easy examples need not wait for hard ones


@dataclass(frozen=True)
class BracketPlan:
    """The stages of a bracket, the skipped ones with the reason, and the budget in seconds."""

    stages: Sequence[Stage[Attack | Certifier]]
    skipped: dict[str, str]
    budget: float


def plan_bracket(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    threat: ThreatModel,
    *,
    budget: float,
    known: Sequence[PlannedAttack | Certifier] = (),
) -> BracketPlan:
    """The stages of a bracket for this model, on images of `shape` (C,H,W).

    known: what the run measures anyway, which is not planned again. UserError if no certifier supports the model.
    """
    stages: list[Stage[Attack | Certifier]] = []
    skipped: dict[str, str] = {}
    for name in ORDER:
        try:
            if name in registry.attack:
                attack: Attack = registry.attack.get(name)()
                attack.check_fits(threat, shape, classes)
                if PlannedAttack(attack, threat) not in known:
                    stages += (
                        attack.stages(threat, classes) if isinstance(attack, StagedAttack) else [Stage(name, attack)]
                    )
            else:
                certifier: Certifier = registry.certifier.get(name)()
                check_certifier(certifier, model, shape, threat)
                if certifier not in known:
                    stages += [Stage(name, each, batch=BATCHES.get(name)) for each in _in_rounds(certifier)]
        except UserError as error:
            skipped[name] = str(error)
    certifiers = [method for method in (*known, *(stage.method for stage in stages)) if isinstance(method, Certifier)]
    if all(certifier.kind == "probabilistic" for certifier in certifiers):
        reasons = dict.fromkeys(reason for name, reason in skipped.items() if name in registry.certifier)
        raise UserError(f"no certifier can bound this model, so there is no bracket ({'; '.join(reasons)})")
    return BracketPlan(stages, skipped, budget)


def _in_rounds(certifier: Certifier) -> list[Certifier]:
    """The certifier with shorter limits first, if it has a time limit per example (an option `seconds`)."""
    limit = getattr(certifier, "seconds", None)
    shorter = [] if limit is None else [seconds for seconds in ROUNDS if seconds < limit]
    return [*(replace(certifier, seconds=seconds) for seconds in shorter), certifier]  # type: ignore[call-arg]


def measure_bracket(
    context: EvalContext, plan: BracketPlan, table: Table, report: Report | None = None
) -> Measurement[Bracket]:
    """Run the stages on the examples that the clean images and the columns of the table do not decide.

    The columns are `status` and `decided_by`. The budget counts the seconds of stored partial results too.
    report(examples, stage) is called with the number of decided examples.
    """
    decisions = Decisions(len(table["index"]))
    for name, broken, certified in _known(table):
        decisions.decide(name, broken, certified)
    if report is not None:
        report(int((decisions.status != "open").sum()), "known before")
    results: list[BatchResult] = []
    limited = False  # did a certifier have less time for an open example than its own limit?
    for stage, result in run_cascade(
        context, plan.stages, name=BRACKET, examples=decisions.status == "open", budget=plan.budget, worst_points=True
    ):
        left = plan.budget - seconds_in(results)
        limited |= getattr(stage.method, "seconds", 0.0) > left and not (result.broken | result.certified).all()
        decisions.decide(stage.name, result.broken, result.certified, result)
        results.append(result)
        if report is not None:
            report(int((result.broken | result.certified).sum()), stage.name)
    low, high = accuracy(decisions.status == "certified"), accuracy(decisions.status != "broken")
    open_examples, seconds = int((decisions.status == "open").sum()), seconds_in(results)
    bracket = Bracket(
        certified_acc=low.acc, certified_ci95=low.ci95, robust_acc=high.acc, robust_ci95=high.ci95,
        open=open_examples, budget_seconds=plan.budget, seconds=seconds, stages=decisions.stages,
        skipped=dict(plan.skipped), warnings=warnings_in(results),
        truncated=open_examples > 0 and (limited or seconds >= plan.budget),
    )  # fmt: skip
    columns: Table = {"status": decisions.status, "decided_by": np.array(decisions.decided_by, dtype=np.str_)}
    return Measurement(context.threat, columns, *broken_in(results), bracket, proofs_in(results))


def _known(table: Table) -> Iterator[tuple[str, Flags, Flags]]:
    """(stage, broken, certified) of everything that is known before the bracket's own stages."""
    none = np.zeros_like(table["clean"])
    yield "clean", ~table["clean"], none
    broken, certified = broken_by(table), certificates(table)
    for spec in dict.fromkeys([*own_specs(table), *certified]):
        yield spec, broken.get(spec, none), certified.get(spec, none)


class Decisions:
    """The status of each example and the stage that decided it. A decision is final."""

    def __init__(self, n: int) -> None:
        self.status: npt.NDArray[np.str_] = np.full(n, "open", dtype="U9")
        self.decided_by = [""] * n
        self.stages: dict[str, BracketStage] = {}

    def decide(self, stage: str, broken: Flags, certified: Flags, result: BatchResult | None = None) -> None:
        """Enter what a stage decided of all examples, or of those of a batch, with its cost; earlier decisions stay."""
        index = np.arange(len(self.status)) if result is None else result.index
        is_open = self.status[index] == "open"
        broken, certified = broken & is_open, certified & ~broken & is_open
        self.status[index[broken]], self.status[index[certified]] = "broken", "certified"
        for row in index[broken | certified]:
            self.decided_by[row] = stage
        total = self.stages.get(stage, BracketStage(0, 0, 0, 0, 0, 0.0))
        cost = (0, 0, 0.0) if result is None else (result.forwards, result.backwards, result.seconds)
        self.stages[stage] = BracketStage(
            total.tried + int(is_open.sum()), total.certified + int(certified.sum()), total.broken + int(broken.sum()),
            total.forwards + cost[0], total.backwards + cost[1], round(total.seconds + cost[2], 3),
        )  # fmt: skip
