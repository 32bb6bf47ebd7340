"""The bracket [certified, attacked]: runs attacks and certifiers, the cheapest first, on the examples left open.

The budget is the maximum number of sub-problems per example, for each certifier that searches. So the results do not
depend on the machine's load, and the result of a certifier for one example does not depend on the other examples.
"""

import math
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
from bench.evaluate.certified import BATCHES, check_certifier
from bench.evaluate.context import EvalContext
from bench.evaluate.witnesses import Measurement

ORDER = ("fgsm", "ibp", "fast-lin", "crown", STRONG_ATTACK, "bab", "alpha-crown", "exact")
FIRST_ROUND, GROWTH = 10, 10  # nodes per example in the rounds, so that easy examples do not wait for hard ones


@dataclass(frozen=True)
class BracketPlan:
    """The stages of a bracket, and the skipped ones with the reason.

    budget: the maximum number of sub-problems per example, for each certifier that searches. time_limit: in seconds;
    None for no limit.
    """

    stages: Sequence[Stage[Attack | Certifier]]
    skipped: dict[str, str]
    budget: int
    time_limit: float | None = None


def plan_bracket(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    threat: ThreatModel,
    *,
    budget: int,
    time_limit: float | None = None,
    known: Sequence[PlannedAttack | Certifier] = (),
) -> BracketPlan:
    """Plan the stages of a bracket for this model, on images of `shape` (C,H,W).

    known: attacks and certifiers that the run measures anyway, so they are not planned again. UserError if no certifier
    supports the model, or if the budget or the time limit is not valid.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UserError(
            f"the budget of a bracket is a number of sub-problems for each example, such as 1000, not {budget!r}; a "
            "limit in seconds is the time limit"
        )
    if time_limit is not None and not 0.001 <= time_limit < math.inf:
        raise UserError(f"the time limit of a bracket is {time_limit} s; it must be at least 0.001 s")
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
                if name == "alpha-crown" and stages and stages[-1].name == "bab":
                    raise UserError("bab begins with its bounds")
                *_, last = rounds = in_rounds(registry.certifier.get(name)(), budget)
                check_certifier(last, model, shape, threat)
                if not any(isinstance(own, Certifier) and _covers(own, last) for own in known):
                    stages += [Stage(name, each, batch=BATCHES.get(name)) for each in rounds]
        except UserError as error:
            skipped[name] = str(error)
    certifiers = [method for method in (*known, *(stage.method for stage in stages)) if isinstance(method, Certifier)]
    if all(certifier.kind == "probabilistic" for certifier in certifiers):
        reasons = dict.fromkeys(reason for name, reason in skipped.items() if name in registry.certifier)
        raise UserError(f"no certifier can bound this model, so there is no bracket ({'; '.join(reasons)})")
    return BracketPlan(stages, skipped, budget, None if time_limit is None else round(time_limit, 3))


def in_rounds(certifier: Certifier, budget: int) -> list[Certifier]:
    """Return the certifier with growing limits up to `budget`, if it searches (has an option `nodes`); else unchanged.

    The limits before the last one are the same for every budget, and so are their results.
    """
    if not hasattr(certifier, "nodes"):
        return [certifier]
    most = max(1, budget // certifier.node_cost)
    limits = [n for k in range(len(str(most))) if (n := FIRST_ROUND * GROWTH**k) < most]
    return [replace(certifier, nodes=n) for n in (*limits, most)]  # type: ignore[call-arg]


def _covers(own: Certifier, planned: Certifier) -> bool:
    """Whether `own` is the planned certifier with at least as many nodes."""
    nodes, least = getattr(own, "nodes", 0), getattr(planned, "nodes", 0)
    if type(own) is type(planned) and nodes > least:
        planned = replace(planned, nodes=nodes)  # type: ignore[call-arg]
    return own == planned


def measure_bracket(
    context: EvalContext, plan: BracketPlan, table: Table, report: Report | None = None
) -> Measurement[Bracket]:
    """Run the stages on the examples that neither the clean predictions nor the columns of the table decide.

    The columns are `status` and `decided_by`. The time limit counts the seconds of stored partial results too.
    report(examples, stage) is called with the number of decided examples.
    """
    decisions = Decisions(len(table["index"]))
    for name, broken, certified in _known(table):
        decisions.decide(name, broken, certified)
    if report is not None:
        report(int((decisions.status != "open").sum()), "known before")
    results: list[BatchResult] = []
    time_limit = math.inf if plan.time_limit is None else plan.time_limit
    for stage, result in run_cascade(
        context, plan.stages, name=BRACKET, examples=decisions.status == "open", time_limit=time_limit,
        worst_points=True,
    ):  # fmt: skip
        decisions.decide(stage.name, result.broken, result.certified, result)
        results.append(result)
        if report is not None:
            report(int((result.broken | result.certified).sum()), stage.name)
    low, high = accuracy(decisions.status == "certified"), accuracy(decisions.status != "broken")
    open_examples, seconds = int((decisions.status == "open").sum()), seconds_in(results)
    bracket = Bracket(
        certified_acc=low.acc, certified_ci95=low.ci95, robust_acc=high.acc, robust_ci95=high.ci95,
        open=open_examples, seconds=seconds, stages=decisions.stages, skipped=dict(plan.skipped),
        warnings=warnings_in(results), budget=plan.budget, time_limit=plan.time_limit,
        truncated=open_examples > 0 and seconds >= time_limit,
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
        self._tried: dict[str, Flags] = {}  # by stage; an example counts once, even if several rounds try it

    def decide(self, stage: str, broken: Flags, certified: Flags, result: BatchResult | None = None) -> None:
        """Add the decisions of a stage, for all examples or those of a batch, and its cost; earlier decisions stay."""
        index = np.arange(len(self.status)) if result is None else result.index
        is_open = self.status[index] == "open"
        broken, certified = broken & is_open, certified & ~broken & is_open
        self.status[index[broken]], self.status[index[certified]] = "broken", "certified"
        for row in index[broken | certified]:
            self.decided_by[row] = stage
        tried = self._tried.setdefault(stage, np.zeros_like(self.status, dtype=np.bool_))
        tried[index] |= is_open
        total = self.stages.get(stage, BracketStage(0, 0, 0, 0, 0, 0.0))
        cost = (0, 0, 0.0) if result is None else (result.forwards, result.backwards, result.seconds)
        searched = None if result is None else result.searched
        self.stages[stage] = BracketStage(
            int(tried.sum()), total.certified + int(certified.sum()), total.broken + int(broken.sum()),
            total.forwards + cost[0], total.backwards + cost[1], round(total.seconds + cost[2], 3),
            total.nodes if searched is None else (total.nodes or 0) + searched,
        )  # fmt: skip
