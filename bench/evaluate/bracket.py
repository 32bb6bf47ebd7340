"""The bracket: [certified, attacked], narrowed by attacks and certifiers in turn until all is decided or time is up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from bench.core import registry
from bench.core.contracts import Attack, Certifier
from bench.core.errors import UserError
from bench.core.example_table import BRACKET, Flags, Table, accuracy, broken_by, certificates, own_specs
from bench.core.records import Bracket, BracketStage
from bench.core.staged_attack import Stage, StagedAttack
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.batch_results import Part, broken_in, passes_in, seconds_in, warnings_in
from bench.evaluate.cascade import run_cascade
from bench.evaluate.certificate_audit import STRONG
from bench.evaluate.certified import check_certifier
from bench.evaluate.witnesses import Evidence

ORDER = ("fgsm", "ibp", "fast-lin", "crown", STRONG, "alpha-crown", "exact")
BATCHES = {"alpha-crown": 32, "exact": 1}  # small, that a slow stage may stop when the budget is spent
ROUNDS = (2.0, 10.0, 60.0)  # seconds an example: what is easy for a slow certifier does not wait for what is hard


@dataclass(frozen=True)
class BracketPlan:
    """What a bracket will run, what it cannot and why, and for how many seconds."""

    stages: Sequence[Stage[Attack | Certifier]]
    skipped: dict[str, str]
    budget: float


@dataclass(frozen=True)
class Bracketed(Evidence):
    """columns: `status`, `decided_by`."""

    result: Bracket


def plan_bracket(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    threat: ThreatModel,
    *,
    budget: float,
    known: Sequence[Attack | Certifier] = (),
) -> BracketPlan:
    """The stages of a bracket of this model, on images of `shape` (C,H,W).

    known: what the run measures by itself, which need not be done again. UserError where there is no certifier.
    """
    stages: list[Stage[Attack | Certifier]] = []
    skipped: dict[str, str] = {}
    for name in ORDER:
        try:
            stages += _stages_of(name, model, shape, classes, threat, known)
        except UserError as error:
            skipped[name] = str(error)
    proofs = [method for method in (*known, *(stage.method for stage in stages)) if isinstance(method, Certifier)]
    if all(certifier.kind == "probabilistic" for certifier in proofs):
        reasons = dict.fromkeys(reason for name, reason in skipped.items() if name in registry.certifier)
        raise UserError(f"no certifier can bound this model, so there is no bracket ({'; '.join(reasons)})")
    return BracketPlan(stages, skipped, budget)


def _stages_of(
    name: str,
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    threat: ThreatModel,
    known: Sequence[Attack | Certifier],
) -> Sequence[Stage[Attack | Certifier]]:
    if name in registry.attack:
        attack: Attack = registry.attack.get(name)(threat=threat)
        attack.check_fits(shape, classes)
        if attack in known:
            return []
        return attack.stages(classes) if isinstance(attack, StagedAttack) else [Stage(name, attack)]
    certifier: Certifier = registry.certifier.get(name)()
    check_certifier(certifier, model, shape, threat)
    if certifier in known:
        return []
    return [Stage(name, timed, batch=BATCHES.get(name)) for timed in _in_rounds(certifier)]


def _in_rounds(certifier: Certifier) -> list[Certifier]:
    """A certifier with a limit of time per example (an option `seconds`), with shorter ones first; any other alone."""
    limit = getattr(certifier, "seconds", None)
    shorter = [] if limit is None else [seconds for seconds in ROUNDS if seconds < limit]
    return [*(replace(certifier, seconds=seconds) for seconds in shorter), certifier]  # type: ignore[call-arg]


def measure_bracket(
    model: nn.Module,
    test: Split,
    plan: BracketPlan,
    table: Table,
    *,
    threat: ThreatModel,
    batch_size: int,
    seed: int,
    parts: Path | None = None,
    report: Callable[[int, str], None] | None = None,
) -> Bracketed:
    """Run the stages on what the clean images, and the attacks and certifiers of the table, have not decided.

    With a folder `parts`, what is done is kept there, and found again by the next call: the seconds that it took too.
    report(examples, stage) is told of how many a batch has decided.
    """
    tally = Tally(len(table["index"]))
    for name, fell, proven in _known(table):
        tally.decide(name, fell, proven)
    if report is not None:
        report(int((tally.status != "open").sum()), "known before")
    done: list[Part] = []
    for stage, part in run_cascade(
        model, test, plan.stages, name=BRACKET, threat=threat, right=tally.status == "open", batch_size=batch_size,
        seed=seed, parts=parts, budget=plan.budget, hints=True,
    ):  # fmt: skip
        tally.add(stage.name, part)
        done.append(part)
        if report is not None:
            report(int((part["broken"] | part["certified"]).sum()), stage.name)
    low, high = accuracy(tally.status == "certified"), accuracy(tally.status != "broken")
    result = Bracket(
        certified_acc=low.acc, certified_ci95=low.ci95, robust_acc=high.acc, robust_ci95=high.ci95,
        open=int((tally.status == "open").sum()), budget_seconds=plan.budget, seconds=seconds_in(done),
        stages=tally.stages, skipped=dict(plan.skipped), warnings=warnings_in(done),
    )  # fmt: skip
    columns: Table = {"status": tally.status, "decided_by": np.array(tally.decided_by, dtype=np.str_)}
    return Bracketed(threat, columns, *broken_in(done), result)


def _known(table: Table) -> Iterator[tuple[str, Flags, Flags]]:
    """(stage, broken, certified) of everything that is known before the bracket's own stages."""
    none = np.zeros_like(table["clean"])
    yield "clean", ~table["clean"], none
    fell, proven = broken_by(table), certificates(table)
    for spec in dict.fromkeys([*own_specs(table), *proven]):
        yield spec, fell.get(spec, none), proven.get(spec, none)


class Tally:
    """Who is decided, by which stage; an example that is decided stays so."""

    def __init__(self, n: int) -> None:
        self.status: npt.NDArray[np.str_] = np.full(n, "open", dtype="U9")
        self.decided_by = [""] * n
        self.stages: dict[str, BracketStage] = {}

    def decide(self, stage: str, fell: Flags, proven: Flags, index: npt.NDArray[np.int64] | None = None) -> None:
        """A stage saw the examples `index`; of those, what it says of the ones that are open is so from now on."""
        index = np.arange(len(self.status)) if index is None else index
        still = self.status[index] == "open"
        fell, proven = fell & still, proven & ~fell & still
        self.status[index[fell]], self.status[index[proven]] = "broken", "certified"
        for row in index[fell | proven]:
            self.decided_by[row] = stage
        before = self.stages.get(stage, BracketStage(0, 0, 0, 0, 0, 0.0))
        self.stages[stage] = BracketStage(
            before.tried + int(still.sum()), before.certified + int(proven.sum()), before.broken + int(fell.sum()),
            before.forwards, before.backwards, before.seconds,
        )  # fmt: skip

    def add(self, stage: str, part: Part) -> None:
        self.decide(stage, part["broken"], part["certified"], part["index"])
        found, (forwards, backwards) = self.stages[stage], passes_in([part])
        self.stages[stage] = BracketStage(
            found.tried, found.certified, found.broken, found.forwards + forwards, found.backwards + backwards,
            round(found.seconds + float(part["seconds"]), 3),
        )  # fmt: skip
