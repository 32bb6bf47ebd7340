"""Shared code of the studies that test claims of papers: tables, claims with verdicts, and intervals over seeds."""

from __future__ import annotations

import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import nn

from bench.core import seeds
from bench.core.errors import UserError
from bench.models.build import build_model
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.study import Study
from leaderboard.render import render, terminal_width, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Size = Literal["small", "paper"]
Verdict = Literal["holds", "does not hold", "not tested at this size"]
Floats = npt.NDArray[np.float64]
LEVEL = 0.95  # of all intervals
WIDEST = 0.5  # largest half-width of an informative interval of an exponent


class Claim(NamedTuple):
    """A statement of a paper, what was measured, and whether it holds there."""

    claim: str
    measured: str
    verdict: Verdict


def holds_if(claim: str, measured: str, holds: bool) -> Claim:
    return Claim(claim, measured, "holds" if holds else "does not hold")


class Table(NamedTuple):
    title: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


@dataclass
class Findings:
    """The result of a study. draw: fills a figure of `inches` (width, height). notes: remarks for the reader."""

    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    draw: Callable[[Figure], None] | None = None
    inches: tuple[float, float] = (11.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class ClaimsStudy(Study):
    """A study of the claims of a paper. It prints its findings section by section, then each claim with its verdict."""

    seed: int = 0  # seed of all random numbers
    size: Size = "small"  # small: at most two minutes on one core; paper: the paper's settings
    figure: str | None = None  # file of the figure, .svg, .pdf or .png; none: no figure
    json: bool = False  # print JSON instead of tables

    @abstractmethod
    def findings(self) -> Findings:
        """Run the experiments."""

    def run(self) -> str:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")
        if self.figure is not None:
            check_figure(self.figure)
        found = self.findings()
        if self.figure is not None and found.draw is not None:
            with new_figure(self.figure, *found.inches) as canvas:
                found.draw(canvas)
        return as_json(self, found) if self.json else as_text(self, found)

    @property
    def small(self) -> bool:
        return self.size == "small"


def as_json(study: ClaimsStudy, found: Findings) -> str:
    return json.dumps(
        {
            "seed": study.seed,
            "size": study.size,
            "tables": [
                {"title": table.title, "rows": [dict(zip(table.header, row, strict=True)) for row in table.rows]}
                for table in found.tables
            ],
            "claims": [claim._asdict() for claim in found.claims],
            "notes": found.notes,
        },
        indent=1,
    )


def as_text(study: ClaimsStudy, found: Findings) -> str:
    width = terminal_width()
    parts = [
        f"{table.title}\n" + render(table.header, [tuple(map(show, row)) for row in table.rows], width=width)
        for table in found.tables
    ]
    parts += [wrapped(f"note: {note}", width) for note in found.notes]
    claims = "\n".join(
        wrapped(f"- {each.claim}\n    measured: {each.measured}\n    {each.verdict}", width, "    ")
        for each in found.claims
    )
    parts.append(f"Claims, at size {study.size}, seed {study.seed}:\n{claims}")
    if study.figure is not None:
        parts.append(f"figure: {study.figure}")
    return "\n\n".join(parts)


def show(value: Any) -> str:
    """The text of a cell; floats have three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def times(self, factor: float) -> Interval:
        """The interval in another unit, or with the opposite sign."""
        low, high = sorted((factor * self.low, factor * self.high))
        return Interval(factor * self.mean, low, high)


def mean_interval(values: Sequence[float] | Floats) -> Interval:
    """The mean of independent values, at least two of them, with its t interval (95 %)."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) * array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half)


def jackknife_values(pairs: Floats) -> Floats:
    """The jackknife values (k,) of the mean over the pairs (k,k) of different seeds; at least three seeds.

    A pair belongs to two seeds, so the means of single seeds are not independent. The value of a seed is k times the
    mean over all pairs minus k - 1 times the mean over the pairs without this seed. The t interval of these values is
    that of the delete-one jackknife over seeds.
    """
    k, others = len(pairs), np.where(np.eye(len(pairs), dtype=bool), np.nan, pairs)
    without = [np.nanmean(np.delete(np.delete(others, seed, axis=0), seed, axis=1)) for seed in range(k)]
    values: Floats = k * np.nanmean(others) - (k - 1) * np.array(without)
    return values


def exponent(x: Sequence[float] | Floats, y: Floats) -> Interval:
    """The power p of y = c x^p: least squares of log y on log x for each seed, then the mean over seeds.

    x (k,) positive; y (seeds, k) positive.
    """
    log_x, log_y = np.log(np.asarray(x, dtype=np.float64)), np.log(y)
    centred = log_x - log_x.mean()
    return mean_interval(log_y @ centred / (centred @ centred))


def exponent_claim(claim: str, text: str, power: Interval, theory: float, near: float) -> Claim:
    """Whether an exponent agrees with the theory: within `near` or its interval; not tested if the interval is wide."""
    half = power.high - power.mean
    if half > WIDEST:
        return Claim(claim, text, "not tested at this size")
    return holds_if(claim, text, abs(power.mean - theory) <= max(near, half))


def effect_claim(claim: str, measured: str, effect: Interval, above: float = 0.0) -> Claim:
    """Whether an effect is larger than `above`; `not tested at this size` if its interval contains that number.

    An interval with an end that is not a number (an undefined correlation, for example) decides nothing either.
    """
    if not (effect.low > above or effect.high < above):
        return Claim(claim, measured, "not tested at this size")
    return holds_if(claim, measured, effect.low > above)


def rank_correlation(x: Floats, y: Floats) -> Interval:
    """Spearman's correlation of independent pairs, with its interval (Bonett and Wright, 2000).

    It is [-1, 1] for fewer than four pairs. The correlation is not a number if one side is constant.
    """
    r = float(stats.spearmanr(x, y).statistic) if len(x) > 1 and np.ptp(x) and np.ptp(y) else math.nan
    if len(x) < 4:
        return Interval(r, -1.0, 1.0)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt((1 + r * r / 2) / (len(x) - 3))
    at = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    return Interval(r, math.tanh(at - half), math.tanh(at + half))


def falling_trend(values: Floats) -> tuple[Interval, float]:
    """Whether the columns of values (seeds, k) fall: (mean Spearman correlation with the column, one-sided p).

    The interval is over seeds, and the p-value is that of a t test that the correlation is below zero. Constant rows
    have correlation 0.
    """
    columns = np.arange(values.shape[1])
    correlations = np.array([stats.spearmanr(columns, row).statistic if np.ptp(row) else 0.0 for row in values])
    mean = mean_interval(correlations)
    if np.ptp(correlations) == 0:  # equal in all seeds: use a sign test
        return mean, 0.5 ** len(correlations) if correlations[0] < 0 else 1.0
    return mean, float(stats.ttest_1samp(correlations, 0, alternative="less").pvalue)


def paired_less(a: Floats, b: Floats) -> tuple[Interval, float]:
    """Paired over seeds: the mean of a - b with its interval, and the one-sided p-value (Wilcoxon) of a < b."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns about ties, for which its p-value is a normal approximation
        p = float(stats.wilcoxon(a, b, alternative="less").pvalue) if (a != b).any() else 1.0
    return mean_interval(a - b), p


def network(spec: str, dim: int, seed: int, *names: str | int) -> nn.Sequential:
    """A two-class network on vectors (B, dim) in float64; `seed` and `names` determine its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, *names))
        model = build_model(spec, (1, 1, dim), 2)
    assert isinstance(model, nn.Sequential)
    return model.double().eval()


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """f(x) (B,) of a two-class network: the difference of its logits, positive for class 1."""
    logits: torch.Tensor = model(x)
    return logits[:, 1] - logits[:, 0]
