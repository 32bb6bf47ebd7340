"""Repeats attacks on examples that a finished run claims to be robust: a given attack, and the run's own attacks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.core import seeds
from bench.core.attack_specs import PlannedAttack
from bench.core.clopper_pearson import upper_bound
from bench.core.contracts import Attack, frozen
from bench.core.example_table import Flags, Table, accuracy, attacked, certified, own_specs, survivors
from bench.core.progress import Progress
from bench.core.spec_text import split_spec
from bench.evaluate.attacked import measure_attack
from bench.evaluate.clean import predict
from bench.evaluate.context import EvalContext
from bench.verify.report import Finding, Outcome

TOLERATED = 0.05  # share of the examples claimed robust that a stronger attack may break
WHOLE = 2000  # up to this number of claimed examples, all of them are attacked
SAMPLE = 1000  # sample size above WHOLE; it misses 100 false claims of 10,000 with a probability of 2e-5
DRAWS = 2  # runs of the attack, each on what is left, because one run may miss an example that is hard to break
SLOW, SLOW_SAMPLE = ("autoattack",), 64  # attacks that are repeated on a sample only

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BrokenExamples:
    """Examples that were broken: test example -> its adversarial example (C,H,W), under the record's threat model."""

    points: Mapping[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __or__(self, other: "BrokenExamples") -> "BrokenExamples":
        return BrokenExamples({**other.points, **self.points})

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """`index` (m,) and `x_adv` (m,C,H,W), as a file of witnesses holds them."""
        index = sorted(self.points)
        return {"index": np.array(index, np.int64), "x_adv": np.stack([self.points[i] for i in index])}


@dataclass(frozen=True)
class ColumnCheck:
    """The repeated attack of a column `robust/SPEC`: the number of robust examples attacked, and those it broke."""

    attacked: int
    fell: list[int]


def attack_again(
    context: EvalContext,
    table: Table,
    attacks: Mapping[str, Attack],
    own: Mapping[str, Attack],
    sample: int | None = None,
) -> tuple[Finding, BrokenExamples]:
    """Attack the examples that are claimed robust, under the record's threat model; broken ones lower its accuracy.

    attacks: one attack, by its spec. own: the run's own attacks that can be repeated, by spec. sample: the maximum
    number of examples, drawn by the seed; None attacks all of up to WHOLE examples, else SAMPLE of them, and then all
    if one of the sample breaks. The attack runs DRAWS times, with other random numbers, on the examples that are left.

    A few broken examples are a warning, because another attack or seed finds others. If the 95 % Clopper-Pearson
    interval of their share lies above TOLERATED, the run's own attacks are repeated on them. If one of these breaks
    such a share too, the claim is false (a failure); otherwise the run's attacks are weaker. A broken certified example
    is a failure.
    """
    ((spec, attack),) = attacks.items()
    name = "attacked again"
    certified_rows = certified(table)
    was_attacked = attacked(table)
    if not was_attacked and not certified_rows.any():
        text = "no attack ran under the record's threat model, so nothing is claimed"
        return Finding(name, "not checkable", text), BrokenExamples()
    claimed = np.flatnonzero(survivors(table) if was_attacked else certified_rows)
    if not len(claimed):
        return Finding(name, "passed", "no example is claimed robust"), BrokenExamples()
    chosen = sample_of(claimed, sample, context.seed)
    fell = _broken_by(context, attack, chosen)
    if fell.points and sample is None and len(chosen) < len(claimed):
        rest = np.setdiff1d(claimed, chosen)
        chosen, fell = claimed, fell | _broken_by(context, attack, rest)
    n, broken = len(chosen), np.array(sorted(fell.points), np.int64)
    refuted = broken[certified_rows[broken]]
    if len(refuted):
        evidence = f"{len(refuted)} certified examples are broken, the first is test example {refuted[0]}"
        return Finding(name, "failed", evidence), fell
    evidence = f"{len(broken)} of {n} broken{_coverage(n, len(claimed), len(broken))}"
    if not len(broken):
        return Finding(name, "passed", evidence), fell
    evidence += f"; the first is {broken[0]}"
    if not _exceeds_tolerance(len(broken), n):
        return Finding(name, "warning", evidence), fell
    for own_spec, own_attack in own.items():
        again = len(_broken_by(context, own_attack, broken, draws=1).points)
        if _exceeds_tolerance(again, n):
            return Finding(name, "failed", f"{evidence}; the run's own {own_spec} breaks {again} of {n}"), fell
    return Finding(name, "weaker", f"weaker than {spec}: {evidence}"), fell


def _coverage(n: int, claimed: int, broken: int) -> str:
    """Describe what the attacked examples imply for all examples that are claimed robust."""
    if n == claimed:
        return " (all that are claimed robust)"
    share = f"at most {float(upper_bound(broken, n, 0.05)):.1%} (95 %) of all {claimed} claimed robust"
    return f", so {share}; {misses(n, claimed)}"


def misses(n: int, claimed: int) -> str:
    """Describe how likely a sample of n contains no false claim, if 1 % of `claimed` are false."""
    from scipy.stats import hypergeom

    false = max(1, round(0.01 * claimed))
    missed = float(hypergeom.pmf(0, claimed, false, n))
    return f"{false} false of {claimed} would be missed with a probability of {missed:.2g}"


def run_again(spec: str) -> str:
    """The name of the check that runs an attack of the record again."""
    return f"{spec} run again"


def column_again(
    context: EvalContext, table: Table, spec: str, planned: PlannedAttack, seed: int
) -> tuple[Finding, BrokenExamples, ColumnCheck]:
    """Repeat an attack of the record with the record's seed, on all examples or on a sample of its robust ones.

    Attacks that are SLOW, or of other libraries, use a sample, drawn by the seed of `context`. Broken examples no
    longer count as robust to this attack. The check fails if the 95 % Clopper-Pearson interval of their share lies
    above TOLERATED.
    """
    name, robust = run_again(spec), table[f"robust/{spec}"]
    slow = split_spec(spec).name in SLOW or "." in split_spec(spec).name
    claimed = np.flatnonzero(robust)
    chosen = sample_of(claimed, SLOW_SAMPLE if slow else None, context.seed)
    examples = table["clean"] & (~robust if len(chosen) == len(claimed) else np.zeros_like(robust))
    examples[chosen] = True  # all of them: the same batches, and so the same random numbers, as in the run
    with Progress(f"verify: {name}", int(examples.sum()), "example", part=True) as progress:
        measured = measure_attack(replace(context, seed=seed), spec, planned, examples, progress.advance)
    fell = [i for i in measured.broken.tolist() if robust[i]]
    points = {i: point for i, point in zip(measured.broken.tolist(), measured.witnesses, strict=True) if robust[i]}
    n = len(chosen)
    evidence = f"{len(fell)} of {n} broken{_coverage(n, len(claimed), len(fell))}" if n else "it left none robust"
    outcome: Outcome = "failed" if n and _exceeds_tolerance(len(fell), n) else "warning" if fell else "passed"
    own = BrokenExamples(points) if spec in own_specs(table) else BrokenExamples()
    return Finding(name, outcome, evidence), own, ColumnCheck(n, fell)


def _broken_by(context: EvalContext, attack: Attack, chosen: Rows, draws: int = DRAWS) -> BrokenExamples:
    """Return the chosen examples that the attack breaks, confirmed by a fresh forward pass."""
    points: dict[int, npt.NDArray[np.float32]] = {}
    for draw in range(draws):
        left = chosen[~np.isin(chosen, list(points))]
        if not len(left):
            break
        points |= _broken_in_one_draw(context, attack, left, ("verify",) if draw == 0 else ("verify", "draw", draw))
    return BrokenExamples(points)


def _broken_in_one_draw(
    context: EvalContext, attack: Attack, chosen: Rows, stream: tuple[str | int, ...]
) -> dict[int, npt.NDArray[np.float32]]:
    points: dict[int, npt.NDArray[np.float32]] = {}
    batches = torch.from_numpy(chosen).to(context.test.y.device).split(context.batch_size)
    with Progress("verify: attacked again", len(chosen), "example", part=True) as progress:
        for number, index in enumerate(batches):
            generator = seeds.generator(index.device, context.seed, *stream, number)
            batch = context.test.take(index)
            x_adv = attack(context.model, batch, context.threat, generator=generator)
            with frozen(context.model):
                broken = predict(context.model, x_adv) != batch.y
            broken &= context.threat.contains(x_adv, batch.x)
            points |= dict(zip(index[broken].tolist(), x_adv[broken].cpu().numpy(), strict=True))
            progress.advance(len(index))
    return points


def _exceeds_tolerance(broken: int, n: int) -> bool:
    """Whether the 95 % interval of a share lies above TOLERATED."""
    return accuracy(_first(broken, n)).ci95[0] > TOLERATED


def _first(hits: int, n: int) -> Flags:
    return np.arange(n) < hits


def sample_of(claimed: Rows, size: int | None, seed: int) -> Rows:
    """Draw at most `size` of the examples by the seed, in order. None: all, or SAMPLE if there are more than WHOLE."""
    size = (len(claimed) if len(claimed) <= WHOLE else SAMPLE) if size is None else size
    return np.sort(np.random.default_rng(seed).choice(claimed, min(size, len(claimed)), replace=False))
