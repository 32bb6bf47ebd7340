"""`bench check`, the regression gate: do new runs differ significantly from a baseline?

If a run has the weights of a baseline run, the two are compared example by example (McNemar's exact test). There is one
test for each seed, because seeds share their examples and are not independent. Otherwise the mean over the new seeds is
compared with the prediction interval of the baseline's seeds. All p-values of a gate are corrected together (Holm). A
significant change fails in either direction, because a broken attack looks like a gain. Any other change is a warning,
except that of a retraining with p > 0.1 before the correction: seeds differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.core.counts import counted
from bench.core.errors import UserError
from bench.core.example_table import certificates
from bench.core.records import VERDICTS
from leaderboard.gate_baseline import LEAST, GateRun, Recipe, read_baseline, read_runs
from leaderboard.render import interval, percent, verdict_text
from leaderboard.significance import holm, mcnemar, prediction, prediction_p

Outcome = Literal["failed", "warning", "ok"]
ALPHA = 0.01
CLEAR = 0.1  # uncorrected p-value of a retraining above which its difference is no warning
LEAST_NEW = 3  # minimum number of seeds of a recipe that was trained again
SEPARATE = {  # settings reported by findings of their own
    "suite", "dataset", "data_hash", "model", "norm", "eps", "attacks", "certifiers", "corruptions",
}  # fmt: skip


@dataclass(frozen=True)
class GateFinding:
    """The outcome for one accuracy of a recipe, or for a property without a number.

    old, new: means over seeds. spread: standard deviation over the seeds of the baseline. p: corrected for all tests of
    the gate; None without a test.
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
    """All findings by recipe."""

    alpha: float
    findings: Mapping[Recipe, Sequence[GateFinding]]

    @property
    def failed(self) -> bool:
        return any(finding.outcome == "failed" for group in self.findings.values() for finding in group)


def check_against_baseline(
    baseline: Path,
    runs: Sequence[Path],
    alpha: float = ALPHA,
    configs: Sequence[str] = (),
    only: Sequence[str] = (),
) -> GateReport:
    """Compare the runs at or below `runs` with the baseline; alpha is the family-wise error rate.

    configs: config hashes of the new runs, for recipes with several settings. only: the recipes to compare, by their
    defense, their text or their folder; empty for all. Raises the errors of `read_runs`; UserError if a name of `only`
    is no recipe.
    """
    if not 0 < alpha < 1:
        raise UserError(f"--alpha is {alpha:g}; the probability of a false alarm must be in (0, 1), such as 0.01")
    old, new = read_baseline(baseline), read_runs(runs, configs)
    findings: dict[Recipe, list[GateFinding]] = {}
    for recipe in chosen_recipes(list(old | new), only):
        if recipe not in new:
            findings[recipe] = [GateFinding("runs", "failed", "the baseline has this recipe, but there is no new run")]
        elif recipe not in old:
            findings[recipe] = [GateFinding("runs", "warning", "not in the baseline; --update adds it")]
        else:
            findings[recipe] = list(compare_recipe(old[recipe], new[recipe], alpha))
    return GateReport(alpha, corrected(findings, alpha))


def chosen_recipes(recipes: Sequence[Recipe], only: Sequence[str]) -> list[Recipe]:
    """The recipes that `only` names, all if it is empty; UserError for a name that is no recipe."""
    names = {recipe: {recipe.defense, str(recipe), recipe.folder} for recipe in recipes}
    for name in only:
        if not any(name in known for known in names.values()):
            defenses = dict.fromkeys(recipe.defense for recipe in recipes)
            raise UserError(f"--only '{name}' is neither in the baseline nor in the runs: {', '.join(defenses)}")
    return [recipe for recipe in recipes if not only or names[recipe].intersection(only)]


def corrected(findings: Mapping[Recipe, Sequence[GateFinding]], alpha: float) -> dict[Recipe, list[GateFinding]]:
    """The findings with corrected p-values; those with p <= alpha fail."""
    adjusted = iter(holm([np.nan if each.p is None else each.p for group in findings.values() for each in group]))

    def correct(finding: GateFinding, p: float) -> GateFinding:
        if finding.p is None:
            return finding
        return replace(finding, p=p, outcome="failed" if p <= alpha else finding.outcome)

    return {recipe: [correct(each, float(next(adjusted))) for each in group] for recipe, group in findings.items()}


def compare_recipe(old: Sequence[GateRun], new: Sequence[GateRun], alpha: float) -> Iterator[GateFinding]:
    """The findings of one recipe, with uncorrected p-values."""
    yield from _settings(old[0], new[0])
    if others := [run.folder for run in (*old, *new) if not _same_examples(run, old[0])]:
        yield GateFinding("data", "failed", f"{others[0]} and {old[0].folder} were evaluated on different examples")
        return
    yield from _columns(old, new)
    if len({run.weights for run in new}) < len(new) and new[0].record.training is not None:
        yield GateFinding("seeds", "failed", "two new seeds have the same weights; train each seed")
    by_weights = {run.weights: run for run in old}
    pairs = [(by_weights[run.weights], run) for run in new if run.weights in by_weights]
    same = len(pairs) == len(new)
    yield from _lost_certificates(pairs)
    yield _verdict([before for before, _ in pairs] if same else old, new, same)
    for what in old[0].accuracies:
        if all(what in run.accuracies for run in (*old, *new)):
            yield from _same_weights(what, pairs) if same else _trained_again(what, old, new, alpha)


def _same_examples(run: GateRun, other: GateRun) -> bool:
    columns = all(np.array_equal(run.table[key], other.table[key]) for key in ("index", "label"))
    return columns and run.record.provenance.get("data_hash") == other.record.provenance.get("data_hash")


def _settings(old: GateRun, new: GateRun) -> Iterator[GateFinding]:
    """Report settings that differ from the baseline. The runs are compared nevertheless.

    The new runs have one config hash, so they have the same settings.
    """
    before, after = dict(_flat(old.record.config)), dict(_flat(new.record.config))
    pairs = {key: (before.get(key), after.get(key)) for key in before | after}
    if changes := [f"{key} {a} -> {b}" for key, (a, b) in pairs.items() if a != b]:
        yield GateFinding("settings", "warning", f"the recipe was run with {', '.join(changes)}")


def _flat(config: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{head}{key}.")
        elif key not in SEPARATE:
            yield f"{head}{key}", value


def _columns(old: Sequence[GateRun], new: Sequence[GateRun]) -> Iterator[GateFinding]:
    """Report accuracies that a new run lacks, or that only the new runs have."""
    before, after = (set.intersection(*(set(run.accuracies) for run in runs)) for runs in (old, new))
    for what in sorted(before - after):
        yield GateFinding(what, "failed", "the baseline has it, but a new run does not")
    for what in sorted(after - before):
        yield GateFinding(what, "warning", "not in the baseline; --update adds it")


def _lost_certificates(pairs: Sequence[tuple[GateRun, GateRun]]) -> Iterator[GateFinding]:
    """Check that, with the same weights, every certified example remains certified."""
    for old, new in pairs:
        after = certificates(new.table)
        for spec, before in certificates(old.table).items():
            lost = new.table["index"][before & ~after[spec]].tolist() if spec in after else []
            if lost:
                message = (
                    f"seed {new.record.seed}, same weights: {len(lost)} lost, the first is that of example {lost[0]}"
                )
                yield GateFinding(f"certificates of {spec}", "failed", message)


def _verdict(old: Sequence[GateRun], new: Sequence[GateRun], same: bool) -> GateFinding:
    """Check if the worst verdict is worse than the baseline's. `suspect` fails only for equal weights: seeds differ."""
    worst = max(new, key=_severity)
    verdict = worst.record.sanity.verdict
    if _severity(worst) <= max(map(_severity, old)):
        return GateFinding("verdict", "ok", verdict_text(verdict))
    message = "; ".join([f"seed {worst.record.seed} is {verdict_text(verdict)}", *worst.record.sanity.reasons])
    return GateFinding("verdict", "failed" if same or verdict == "unreliable" else "warning", message)


def _severity(run: GateRun) -> int:
    """0 for the best verdict; an unknown verdict is the worst."""
    verdict = run.record.sanity.verdict
    return [*VERDICTS, verdict].index(verdict)


def _same_weights(what: str, pairs: Sequence[tuple[GateRun, GateRun]]) -> Iterator[GateFinding]:
    """Test each seed with a changed example; a single finding if no example changed.

    A test without a discordant pair cannot reject, so it may be left out of the correction (Tarone 1990).
    """
    changed = False
    for old, new in pairs:
        before, after = old.accuracies[what], new.accuracies[what]
        lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
        if lost + gained:
            changed = True
            yield GateFinding(
                f"{what}, seed {new.record.seed}", "warning",
                f"same weights: {counted(lost, 'example')} lost, {gained} gained",
                old=float(before.mean()), new=float(after.mean()), p=float(mcnemar(lost, gained)),
            )  # fmt: skip
    if not changed:
        mean = float(np.mean([new.accuracies[what].mean() for _, new in pairs]))
        message = f"same weights, and no example changed in {counted(len(pairs), 'seed')}"
        yield GateFinding(what, "ok", message, old=mean, new=mean)


def _trained_again(what: str, old: Sequence[GateRun], new: Sequence[GateRun], alpha: float) -> Iterator[GateFinding]:
    """Test whether the mean of the new seeds is in the prediction interval of the baseline."""
    if len(old) < LEAST or len(new) < LEAST_NEW:
        need = f"at least {LEAST} seeds of the baseline and {LEAST_NEW} new ones are needed"
        yield GateFinding(what, "failed", f"other weights: {need}; there are {len(old)} and {len(new)}")
        return
    before, after = (np.array([run.accuracies[what].mean() for run in runs]) for runs in (old, new))
    grain = 1 / len(old[0].accuracies[what])
    low, high = prediction(before, len(new), 1 - alpha, grain)
    predicted = interval((max(0.0, float(low)), min(1.0, float(high))))
    p = float(prediction_p(before, after, grain))
    least = f"changes of less than {percent(float(high - low) / 2)} points are not detected"
    yield GateFinding(
        what, "ok" if p > CLEAR else "warning",
        f"trained again: {counted(len(old), 'seed')} predict {predicted} for {len(new)}; {least}",
        old=float(before.mean()), new=float(after.mean()), spread=float(before.std(ddof=1)),
        p=p,
    )  # fmt: skip
