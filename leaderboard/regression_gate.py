"""`bench check`: are new runs what the baseline says, but for chance?

With the baseline's weights, each seed is compared with its own example by example (McNemar's exact test; one test a
seed, for seeds that share their examples cannot be added up). With other weights, the mean over the new seeds must
stay where the baseline's seeds predict it. All tests of a gate are corrected together (Holm). A significant change
fails in either direction: a sudden gain is how a broken attack looks. A change that chance explains is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.core.errors import UserError
from bench.core.example_table import certificates
from leaderboard.build_board import VERDICTS
from leaderboard.gate_baseline import LEAST, GateRun, Recipe, read_runs
from leaderboard.run_tables import interval
from leaderboard.statistics import holm, mcnemar, prediction, prediction_p

Outcome = Literal["failed", "warning", "ok"]
ALPHA = 0.01
NEW = 3  # seeds of a recipe that was trained again
TOLD = {"suite", "dataset", "data_hash", "model", "norm", "eps", "attacks", "certifiers"}  # by findings of their own


@dataclass(frozen=True)
class GateFinding:
    """What was found of an accuracy of a recipe, or of something that has no number.

    old, new: means over seeds. spread: standard deviation over the baseline's. p: of a test, corrected for all tests of
    the gate; None where nothing was tested.
    """

    what: str
    outcome: Outcome
    message: str
    old: float | None = None
    new: float | None = None
    spread: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class GateReport:
    """All findings, by recipe."""

    alpha: float
    findings: Mapping[Recipe, Sequence[GateFinding]]

    @property
    def failed(self) -> bool:
        return any(finding.outcome == "failed" for group in self.findings.values() for finding in group)


def check_against_baseline(baseline: Path, runs: Sequence[Path], alpha: float = ALPHA) -> GateReport:
    """Compare the runs at or below `runs` with those at or below `baseline`; one false alarm has a chance of `alpha`.

    CheckError where a record does not fit its table; UserError where there is none, or a seed twice.
    """
    if not 0 < alpha < 1:
        raise UserError(f"--alpha {alpha:g}: the chance of a false alarm lies in (0, 1), as 0.01")
    old, new = read_runs([baseline]), read_runs(runs)
    found: dict[Recipe, list[GateFinding]] = {}
    for recipe in old | new:
        if recipe not in new:
            found[recipe] = [GateFinding("runs", "failed", "the baseline has this recipe, and there is no new run of it")]
        elif recipe not in old:
            found[recipe] = [GateFinding("runs", "warning", "the baseline does not have this recipe: --update adds it")]
        else:
            found[recipe] = list(compare_recipe(old[recipe], new[recipe], alpha))
    return GateReport(alpha, corrected(found, alpha))


def corrected(findings: Mapping[Recipe, Sequence[GateFinding]], alpha: float) -> dict[Recipe, list[GateFinding]]:
    """The findings with corrected p-values, and failed where those are at most alpha."""
    adjusted = iter(holm([np.nan if each.p is None else each.p for group in findings.values() for each in group]))

    def judged(finding: GateFinding, p: float) -> GateFinding:
        if finding.p is None:
            return finding
        return replace(finding, p=p, outcome="failed" if p <= alpha else finding.outcome)

    return {recipe: [judged(each, float(next(adjusted))) for each in group] for recipe, group in findings.items()}


def compare_recipe(old: Sequence[GateRun], new: Sequence[GateRun], alpha: float) -> Iterator[GateFinding]:
    """Findings of one recipe, p-values not yet corrected."""
    yield from _settings(old[0], new)
    if others := [run.folder for run in (*old, *new) if not _same_examples(run, old[0])]:
        yield GateFinding("data", "failed", f"{others[0]} is of other examples, or of other data, than {old[0].folder}")
        return
    yield from _columns(old, new)
    if len({run.weights for run in new}) < len(new) and new[0].record.training is not None:
        yield GateFinding("seeds", "failed", "two new seeds have the same weights; each must be a training of its own")
    by_weights = {run.weights: run for run in old}
    twins = [(by_weights[run.weights], run) for run in new if run.weights in by_weights]
    same = len(twins) == len(new)
    yield from _lost_certificates(twins)
    yield _verdict([twin for twin, _ in twins] if same else old, new, same)
    for what in old[0].accuracies:
        if all(what in run.accuracies for run in (*old, *new)):
            yield from _same_weights(what, twins) if same else _trained_again(what, old, new, alpha)


def _same_examples(run: GateRun, other: GateRun) -> bool:
    columns = all(np.array_equal(run.table[key], other.table[key]) for key in ("index", "label"))
    return columns and run.record.provenance.get("data_hash") == other.record.provenance.get("data_hash")


def _settings(old: GateRun, new: Sequence[GateRun]) -> Iterator[GateFinding]:
    """What was set otherwise than in the baseline, which is compared all the same."""
    before = dict(_flat(old.record.config))
    for run in new:
        after = dict(_flat(run.record.config))
        changes = [
            f"{key} {before.get(key)} -> {after.get(key)}"
            for key in before | after
            if before.get(key) != after.get(key)
        ]
        if changes:
            yield GateFinding("settings", "warning", f"seed {run.record.seed} was run with {', '.join(changes)}")
            return


def _flat(config: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{head}{key}.")
        elif key not in TOLD:
            yield f"{head}{key}", value


def _columns(old: Sequence[GateRun], new: Sequence[GateRun]) -> Iterator[GateFinding]:
    """Accuracies that the baseline has and a new run has not, or that only the new runs have."""
    before, after = (set.intersection(*(set(run.accuracies) for run in runs)) for runs in (old, new))
    for what in sorted(before - after):
        yield GateFinding(what, "failed", "the baseline has it, and a new run does not")
    for what in sorted(after - before):
        yield GateFinding(what, "warning", "the baseline does not have it: --update adds it")


def _lost_certificates(twins: Sequence[tuple[GateRun, GateRun]]) -> Iterator[GateFinding]:
    """With the same weights, what was proven once must be proven still."""
    for old, new in twins:
        after = certificates(new.table)
        for spec, before in certificates(old.table).items():
            lost = new.table["index"][before & ~after[spec]].tolist() if spec in after else []
            if lost:
                message = (
                    f"seed {new.record.seed}: {len(lost)} lost with the same weights, the first of example {lost[0]}"
                )
                yield GateFinding(f"certificates of {spec}", "failed", message)


def _verdict(old: Sequence[GateRun], new: Sequence[GateRun], same: bool) -> GateFinding:
    """Is one worse than the worst of the baseline's? Seeds differ, so `suspect` fails with the same weights only."""
    before, worst = max(old, key=_suspicion), max(new, key=_suspicion)
    verdict = worst.record.sanity.verdict
    if _suspicion(worst) <= _suspicion(before):
        return GateFinding("verdict", "ok", verdict)
    message = "; ".join([f"seed {worst.record.seed} is {verdict}", *worst.record.sanity.reasons])
    return GateFinding("verdict", "failed" if same or verdict == VERDICTS[-1] else "warning", message)


def _suspicion(run: GateRun) -> int:
    verdict = run.record.sanity.verdict
    return (*VERDICTS, verdict).index(verdict)


def _same_weights(what: str, twins: Sequence[tuple[GateRun, GateRun]]) -> Iterator[GateFinding]:
    """A test for each seed in which an example changed; one finding where none did.

    A test without a discordant pair could not have alarmed, so leaving it out of the correction is sound (Tarone 1990).
    """
    changed = False
    for old, new in twins:
        before, after = old.accuracies[what], new.accuracies[what]
        lost, won = int((before & ~after).sum()), int((after & ~before).sum())
        if lost + won:
            changed = True
            yield GateFinding(
                f"{what}, seed {new.record.seed}", "warning", f"same weights: {lost} examples lost, {won} won",
                float(before.mean()), float(after.mean()), p=float(mcnemar(lost, won)),
            )  # fmt: skip
    if not changed:
        mean = float(np.mean([new.accuracies[what].mean() for _, new in twins]))
        yield GateFinding(what, "ok", f"same weights, and no example changed in {len(twins)} seeds", mean, mean)


def _trained_again(what: str, old: Sequence[GateRun], new: Sequence[GateRun], alpha: float) -> Iterator[GateFinding]:
    """Is the mean of the new seeds where the baseline's predict it?"""
    if len(old) < LEAST or len(new) < NEW:
        has = f"has {len(old)} and {len(new)}"
        yield GateFinding(what, "failed", f"other weights: needs {LEAST} baseline seeds and {NEW} new ones at least, {has}")
        return
    before, after = (np.array([run.accuracies[what].mean() for run in runs]) for runs in (old, new))
    grain = 1 / len(old[0].accuracies[what])
    low, high = prediction(before, len(new), 1 - alpha, grain)
    predicted = interval((max(0.0, float(low)), min(1.0, float(high))))
    same = bool(abs(before.mean() - after.mean()) < 1e-9)
    yield GateFinding(
        what, "ok" if same else "warning", f"trained again: {len(old)} seeds predict {predicted} for {len(new)}",
        float(before.mean()), float(after.mean()), float(before.std(ddof=1)), float(prediction_p(before, after, grain)),
    )  # fmt: skip
