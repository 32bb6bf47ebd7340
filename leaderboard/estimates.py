"""Accuracies over seeds with their intervals, and how every table shows them."""

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from bench.core import clopper_pearson
from leaderboard.render import interval, percent
from leaderboard.significance import LEVEL, prediction, recipe_interval

INTERVALS = (
    "[low, high] is a 95 % interval. Of a recipe with several seeds: for its expected accuracy over seeds and examples "
    "(t and Clopper-Pearson half-widths, combined in quadrature). Of weights: for their accuracy over examples "
    "(Clopper-Pearson). +- is the standard deviation over seeds."
)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """An accuracy: the mean over seeds, with a 95 % interval (low, high).

    interval_of: `recipe` for the expected accuracy over seeds and examples; `weights` for the accuracy of these weights
    over examples; None without an interval. spread: the standard deviation over seeds, None for one seed. new_seed: the
    95 % prediction interval of the accuracy of one new seed on the same examples; None for weights.
    """

    acc: float
    low: float
    high: float
    interval_of: Literal["recipe", "weights"] | None = "weights"
    spread: float | None = None
    new_seed: tuple[float, float] | None = None


def estimate(shares: Sequence[float], n: int, *, recipe: bool) -> Estimate:
    """The mean of the accuracies of some runs on n examples, with its interval.

    recipe: whether they are several trainings of one recipe; otherwise they are evaluations of fixed weights.
    """
    mean = statistics.fmean(shares)
    if not recipe:
        low, high = clopper_pearson.interval(mean * n, n)
        return Estimate(acc=mean, low=float(low), high=float(high))
    low, high = recipe_interval(shares, n)
    new_low, new_high = prediction(shares, 1, LEVEL, 1 / n)
    return Estimate(
        acc=mean, low=float(low), high=float(high), interval_of="recipe", spread=statistics.stdev(shares),
        new_seed=(max(0.0, float(new_low)), min(1.0, float(new_high))),
    )  # fmt: skip


def accuracy_text(found: Estimate | None) -> str:
    """`93.1 +- 0.4 [91.0, 95.2]`, in percent; empty for None."""
    if found is None:
        return ""
    spread = "" if found.spread is None else f" +- {percent(found.spread)}"
    ends = "" if found.interval_of is None else f" {interval((found.low, found.high))}"
    return f"{percent(found.acc)}{spread}{ends}"


def open_text(count: float | None, truncated: bool) -> str:
    """How many examples a bracket left open, and whether a time limit cut it; empty for None."""
    return "" if count is None else f"{count:.0f}{' cut' if truncated else ''}"
