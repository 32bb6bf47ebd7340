"""`bench compare A B`: is one better than the other, by how much, and how many more examples or seeds would tell?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from bench.core.errors import UserError
from bench.core.record_files import find_records
from leaderboard.published_results import EvaluatedRun, read_evaluated_run
from leaderboard.statistics import examples_needed, mcnemar, paired_difference, seeds_difference, seeds_needed

SHOWN = 20  # flipped examples that are named
METRICS = ("clean", "robust", "certified")


@dataclass(frozen=True)
class Side:
    """One of the two: a network with fixed weights, or the seeds of one recipe."""

    name: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def recipe(self) -> bool:
        return len(self.runs) > 1


@dataclass(frozen=True)
class Difference:
    """Of one accuracy: A less B, its 95 % interval, p, the test examples that flip, and what it takes to tell.

    flips: examples that only A (or only B) gets right; empty between recipes, where each seed has its own. needed: so
    many examples, or seeds a side, for a power of 80 % at 5 %, were the difference what it seems; None where it is 0.
    """

    metric: str
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
    """A run folder, or a folder of the seeds of one recipe; UserError where there is anything else."""
    runs = tuple(read_evaluated_run(folder) for folder in find_records([path]))
    recipes = {(run.record.defense, run.record.config_hash) for run in runs}
    if len(recipes) > 1:
        raise UserError(f"{path} holds {len(recipes)} recipes; give a run folder, or the seeds of one recipe")
    weights = {run.record.artifacts["weights"].sha256 for run in runs}
    if len(runs) > 1 and len(weights) < len(runs):
        raise UserError(f"{path} holds the same weights twice; give one run of them")
    return Side(str(path), runs)


def compare(a: Side, b: Side) -> list[Difference]:
    """Each accuracy that both sides have, on the examples that both have; UserError where there are none."""
    first, other = a.runs[0].record, b.runs[0].record
    mine, theirs = (r.provenance.get("data_hash") for r in (first, other))
    if mine != theirs:
        raise UserError(f"{a.name} is of {first.dataset}, {b.name} of {other.dataset}; compare runs on the same data")
    if first.threat != other.threat:
        raise UserError(
            f"{a.name} is under {first.threat.norm} {first.threat.eps:g}, {b.name} under {other.threat.norm} "
            f"{other.threat.eps:g}; compare runs under one threat model"
        )
    if a.recipe != b.recipe and min(len(a.runs), len(b.runs)) == 1 and _trained(a, b):
        one = a if len(a.runs) == 1 else b
        raise UserError(f"{one.name} is one seed of a recipe, which says little of the recipe; give at least two")
    n = min(len(run.clean) for side in (a, b) for run in side.runs)
    return [_difference(metric, a, b, n) for metric in METRICS if _has(metric, a) and _has(metric, b)]


def _trained(a: Side, b: Side) -> bool:
    return all(run.record.training is not None for side in (a, b) for run in side.runs)


def _has(metric: str, side: Side) -> bool:
    records = [run.record for run in side.runs]
    if metric == "robust":
        return all(r.worst is not None or r.bracket is not None for r in records)
    return metric == "clean" or all(r.certifiers or r.bracket is not None for r in records)


def _difference(metric: str, a: Side, b: Side, n: int) -> Difference:
    hits_a, hits_b = (np.stack([getattr(run, metric)[:n] for run in side.runs]) for side in (a, b))
    if a.recipe or b.recipe:
        return _over_seeds(metric, hits_a.mean(axis=1), hits_b.mean(axis=1), n)
    return _paired(metric, hits_a[0], hits_b[0], n)


def _paired(metric: str, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], n: int) -> Difference:
    only_a, only_b = np.flatnonzero(a & ~b), np.flatnonzero(b & ~a)
    difference, low, high = (float(x) for x in paired_difference(len(only_a), len(only_b), n))
    return Difference(
        metric, float(a.mean()), float(b.mean()), difference, low, high, float(mcnemar(len(only_a), len(only_b))),
        "McNemar, exact", tuple(only_a.tolist()), tuple(only_b.tolist()),
        examples_needed(len(only_a), len(only_b), n),
    )  # fmt: skip


def _over_seeds(metric: str, a: npt.NDArray[Any], b: npt.NDArray[Any], n: int) -> Difference:
    sides = [each if len(each) > 1 else float(each[0]) for each in (a, b)]
    found = seeds_difference(sides[0], sides[1], 1 / n)
    return Difference(
        metric, float(a.mean()), float(b.mean()), found.difference, found.low, found.high, found.p,
        "t over seeds", needed=seeds_needed(sides[0], sides[1], 1 / n),
    )  # fmt: skip


def comparison_table(a: Side, b: Side, found: Sequence[Difference]) -> str:
    """For people: a line an accuracy in percent, then who flips."""
    unit = "seeds a side" if a.recipe or b.recipe else "examples"
    headers = ["accuracy %", "A", "B", "A - B", "95 % interval", "p", "test", f"{unit} to tell"]
    rows = [
        [
            d.metric, f"{100 * d.a:.1f}", f"{100 * d.b:.1f}", f"{100 * d.difference:+.1f}",
            "" if d.low is None or d.high is None else f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]",
            "" if d.p is None else f"{d.p:.2g}", d.test, "" if d.needed is None else f"{d.needed:,}",
        ]
        for d in found
    ]  # fmt: skip
    align = ["left", *["right"] * 5, "left", "right"]
    table = tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
    flips = [_flips(d, who, of) for d in found for who, of in (("A", d.only_a), ("B", d.only_b)) if of]
    if not a.recipe and not b.recipe:
        flips.append("This compares two networks. Which way of training is better is a question of several seeds.")
    seeds = [f"{side.name} ({len(side.runs)} seeds)" if side.recipe else side.name for side in (a, b)]
    return "\n".join([f"A: {seeds[0]}", f"B: {seeds[1]}", "", table, *([""] if flips else []), *flips])


def _flips(d: Difference, who: str, examples: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, examples[:SHOWN]))
    more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return f"{d.metric}, only {who}: {len(examples)} examples: {shown}{more}"
