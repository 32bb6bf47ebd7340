"""`bench compare A B`: the difference of two runs or recipes, its significance, and the sample size that it needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.counts import counted
from bench.core.errors import UserError
from bench.core.record_files import find_records
from bench.core.records import Record
from bench.core.spec_text import split_spec
from leaderboard.published_results import EvaluatedRun, read_evaluated_run
from leaderboard.render import percent, render, threat_name, wrapped
from leaderboard.significance import (
    examples_needed,
    mcnemar,
    paired_difference,
    paired_means,
    seeds_difference,
    seeds_needed,
)

SHOWN = 20  # maximum number of examples that are listed
METRICS = ("clean", "robust", "certified", "corrupted")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a network with fixed weights, or the seeds of one recipe."""

    name: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def recipe(self) -> bool:
        return len(self.runs) > 1


@dataclass(frozen=True)
class Difference:
    """A - B of one accuracy on the first n examples, with its 95 % interval and p-value.

    low, high and p are None if a recipe has only one seed.
    only_a, only_b: the test examples that count for one side only; empty if recipes are compared. needed: the number
    of examples, or of seeds of each side, for a power of 80 % at the 5 % level if the observed difference is the true
    one; None if it is 0, and for corruptions.
    """

    metric: str
    n: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    only_a: tuple[int, ...] = ()
    only_b: tuple[int, ...] = ()
    needed: int | None = None


def read_side(path: Path) -> Side:
    """Read a run folder, or a folder of the seeds of one recipe; UserError for several recipes or equal weights."""
    runs = tuple(read_evaluated_run(folder) for folder in find_records([path]))
    recipes = {(run.record.defense, run.record.config_hash) for run in runs}
    if len(recipes) > 1:
        raise UserError(f"{path} holds {len(recipes)} recipes; give a run folder, or the seeds of one recipe")
    weights = {run.record.artifacts["weights"].sha256 for run in runs}
    if len(runs) > 1 and len(weights) < len(runs):
        raise UserError(f"{path} holds the same weights twice; give one of these runs")
    return Side(str(path), runs)


def compare(a: Side, b: Side) -> list[Difference]:
    """The difference of each accuracy that both sides have, on the examples that both have.

    "corrupted" is the mean accuracy over all corruptions and severities. UserError if the two sides are not comparable:
    other data, another threat model, other corruptions, a single seed against a recipe.
    """
    record_a, record_b = a.runs[0].record, b.runs[0].record
    if record_a.provenance.get("data_hash") != record_b.provenance.get("data_hash"):
        data = f"{a.name} is on {record_a.dataset}, {b.name} on {record_b.dataset}"
        raise UserError(f"{data}, and their test examples differ; compare runs on the same data")
    if record_a.threat != record_b.threat:
        under = f"{a.name} is under {threat_name(record_a.threat)}, {b.name} under {threat_name(record_b.threat)}"
        raise UserError(f"{under}; compare runs under one threat model")
    runs = [run for side in (a, b) for run in side.runs]
    if a.recipe != b.recipe and all(run.record.training is not None for run in runs):
        single = b if a.recipe else a
        raise UserError(f"{single.name} is a single seed of a recipe; give at least two seeds to compare recipes")
    n = min(len(run.clean) for run in runs)
    shared = [metric for metric in METRICS if _has(metric, a) and _has(metric, b)]
    if "corrupted" in shared and len({_corruptions(run.record) for run in runs}) > 1:
        raise UserError(f"{a.name} and {b.name} have different corruptions; compare runs with the same --corruptions")
    return [_difference(metric, a, b, n) for metric in shared]


def _has(metric: str, side: Side) -> bool:
    if metric == "robust":
        return all(run.attacked for run in side.runs)
    if metric == "corrupted":
        return all(run.corrupted is not None for run in side.runs)
    return metric == "clean" or all(run.record.certifies_model for run in side.runs)


def _corruptions(record: Record) -> frozenset[tuple[str, str | None]]:
    return frozenset((name, result.file) for name, result in record.corruptions.items())


def _difference(metric: str, a: Side, b: Side, n: int) -> Difference:
    hits_a, hits_b = (np.stack([getattr(run, metric)[:n] for run in side.runs]) for side in (a, b))
    if a.recipe or b.recipe:
        return _over_seeds(metric, hits_a.mean(axis=1), hits_b.mean(axis=1), n)
    if metric == "corrupted":
        test = paired_means(hits_a[0], hits_b[0])
        means = float(hits_a.mean()), float(hits_b.mean())
        return Difference(metric, n, *means, test.difference, test.low, test.high, test.p, "paired t over examples")
    return _paired(metric, hits_a[0], hits_b[0], n)


def _paired(metric: str, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], n: int) -> Difference:
    only_a, only_b = np.flatnonzero(a & ~b), np.flatnonzero(b & ~a)
    difference, low, high = (float(x) for x in paired_difference(len(only_a), len(only_b), n))
    return Difference(
        metric, n, float(a.mean()), float(b.mean()), difference, low, high, float(mcnemar(len(only_a), len(only_b))),
        "McNemar, exact", tuple(only_a.tolist()), tuple(only_b.tolist()),
        examples_needed(len(only_a), len(only_b), n),
    )  # fmt: skip


def _over_seeds(metric: str, a: npt.NDArray[Any], b: npt.NDArray[Any], n: int) -> Difference:
    sides = [each if len(each) > 1 else float(each[0]) for each in (a, b)]
    test = seeds_difference(sides[0], sides[1], 1 / n)
    return Difference(
        metric, n, float(a.mean()), float(b.mean()), test.difference, test.low, test.high, test.p,
        "t over seeds", needed=seeds_needed(sides[0], sides[1], 1 / n),
    )  # fmt: skip


def comparison_table(a: Side, b: Side, differences: Sequence[Difference], width: int | None = None) -> str:
    """A line for each accuracy, in percent, and the examples that count for one side only.

    width: of the terminal that the text should fit; None for markdown.
    """
    recipes = a.recipe or b.recipe
    unit = "seeds a side" if recipes else "examples"
    what = "of recipes" if recipes else "of these weights"
    headers = ["accuracy %", "n", "A", "B", "A - B", f"95 % interval, {what}", "p", "test", f"{unit} to tell"]
    rows = [
        [
            d.metric, f"{d.n:,}", percent(d.a), percent(d.b), f"{100 * d.difference:+.1f}",
            "" if d.low is None or d.high is None else f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]",
            "" if d.p is None else f"{d.p:.2g}", d.test, "" if d.needed is None else f"{d.needed:,}",
        ]
        for d in differences
    ]  # fmt: skip
    notes = [*_sizes(a, b), *caveats(a, b, [d.metric for d in differences])]
    notes += [
        _examples_of_one_side(d.metric, side, examples)
        for d in differences
        for side, examples in (("A", d.only_a), ("B", d.only_b))
        if examples
    ]
    if not recipes:
        notes.append("This compares two networks. To compare the recipes behind them, give several seeds of each.")
    names = [f"{side.name} ({len(side.runs)} seeds)" if side.recipe else side.name for side in (a, b)]
    lines = [f"A: {names[0]}", f"B: {names[1]}", "", render(headers, rows, "markdown", "lrrrrrrlr", width)]
    return "\n".join([*lines, *([""] if notes else []), *(wrapped(note, width) for note in notes)])


def caveats(a: Side, b: Side, metrics: Sequence[str]) -> list[str]:
    """Say so if the sides have the same weights, or were not attacked or certified by the same methods."""
    found = []
    weights = [{run.record.artifacts["weights"].sha256 for run in side.runs} for side in (a, b)]
    if weights[0] == weights[1]:
        found.append("A and B have the same weights.")
    for metric, done in (("robust", "attacked"), ("certified", "certified")):
        ours, theirs = (sorted({text for run in side.runs for text in _methods(run.record, metric)}) for side in (a, b))
        if metric in metrics and ours != theirs:
            both = f"A was {done} by {', '.join(ours)}, B by {', '.join(theirs)}"
            found.append(f"{both}: `{metric}` compares these methods as well as the networks.")
    return found


def _methods(record: Record, metric: str) -> list[str]:
    """The attacks under the record's threat model, or the certifiers of the model itself."""
    bracket = [] if record.bracket is None else [f"a bracket of budget {record.bracket.budget}"]
    if metric == "robust":
        return [spec for spec in record.attacks if not {"norm", "eps"} & split_spec(spec).options.keys()] + bracket
    return [spec for spec, result in record.certifiers.items() if result.kind == "deterministic"] + bracket


def _sizes(a: Side, b: Side) -> list[str]:
    """Say so if the runs have different numbers of examples, and how many are compared."""
    sizes = [sorted({len(run.clean) for run in side.runs}) for side in (a, b)]
    each = sorted({*sizes[0], *sizes[1]})
    if len(each) == 1:
        return []
    texts = [" and ".join(f"{size:,}" for size in side) for side in sizes]
    return [f"A has {texts[0]} examples, B {texts[1]}: the first {each[0]:,}, which all have, are compared."]


def _examples_of_one_side(metric: str, side: str, examples: Sequence[int]) -> str:
    more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    listed = ", ".join(map(str, examples[:SHOWN]))
    return f"{metric}, only {side}: {counted(len(examples), 'example')}: {listed}{more}"
