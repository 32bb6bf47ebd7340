"""What the sanity checks share: a few examples, the model's answers to them, the climbs, the table's columns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Attack, Batch, frozen
from bench.core.example_table import Table, attack_specs, survivors
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.sanity.attacks import (
    Slope,
    averaged,
    climb,
    cross_entropy,
    falling_margin,
    margin,
    rescaled,
    smoothed,
)

EXAMPLES = 64  # enough for a share of 5 % to be told from one of 20 %, few enough for every record
STEPS = 20
STEP_SIZE = 2.5  # times eps / steps: the rule of thumb of Madry et al. (2018), with which a climb can cross its ball
REPEATS = 4  # passes over the same images, to see whether the model draws numbers
REPEAT_NOISE = 1e-4  # of the logits' spread; the same pass again gives 0, or rounding where a GPU adds in any order
PASSES = 8  # that a stochastic model's accuracy, and its gradient, are the mean of
SPREAD = 20.0  # of rescaled logits: on six sound models no other of 2 to 50 was stronger by more than 0.02
PAIRS = 16  # of opposite points that a smoothed gradient takes
SIGMA = 0.1  # its noise under L2 and L1, where eps, spread over all pixels, would be too little to see anything by


@dataclass(frozen=True)
class Column:
    """A `robust/SPEC` column: the attack's name, its options as text, and who survived it."""

    spec: str
    name: str
    options: dict[str, str]
    robust: npt.NDArray[np.bool_]

    @property
    def own(self) -> bool:
        """Whether it is of the record's threat model, not of another that its options name."""
        return not {"eps", "norm"} & set(self.options)


def _column(spec: str, robust: npt.NDArray[np.bool_]) -> Column:
    name, *rest = spec.split(":")
    options = dict(part.split("=", 1) for part in rest if "=" in part)
    short = re.fullmatch(r"(.+)-(\d+)", name)
    if short:
        name, options["steps"] = short.groups()
    return Column(spec, name, options, robust)


@dataclass(frozen=True)
class Probe:
    """A model and some of its examples. What several checks need is measured once, when first asked for."""

    model: nn.Module
    test: Split
    threat: ThreatModel
    table: Table
    seed: int
    batch_size: int

    @property
    def eps(self) -> float:
        return float(self.threat.eps)

    @property
    def whole_box(self) -> float:
        """The eps from which on the ball holds the whole box."""
        low, high = self.threat.box or (0.0, 1.0)
        pixels = math.prod(self.test.image_shape)
        return (high - low) * {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[self.threat.norm]

    @cached_property
    def columns(self) -> list[Column]:
        return [_column(spec, self.table[f"robust/{spec}"]) for spec in attack_specs(self.table)]

    # The examples -------------------------------------------------------------------------------------------------

    @cached_property
    def shown(self) -> Batch:
        """The first examples."""
        return self.test.take(torch.arange(min(EXAMPLES, len(self.test)), device=self.test.y.device))

    @cached_property
    def _robust(self) -> npt.NDArray[np.int64]:
        """Rows of the table that the record counts as robust (as right, where it has no attack)."""
        rows: npt.NDArray[np.int64] = survivors(self.table).nonzero()[0]
        return rows

    @cached_property
    def standing(self) -> Batch:
        """The first examples that the record counts as robust."""
        return self.test.take(torch.from_numpy(self.table["index"][self._robust[:EXAMPLES]]).to(self.test.y.device))

    @property
    def among(self) -> int:
        """How many right examples the standing ones were found among.

        What stands where nearly all fell was left by bad luck of the attacks, and shows odd signs on sound models too;
        so signs are counted as shares of this.
        """
        last = self._robust[EXAMPLES - 1] if len(self._robust) >= EXAMPLES else len(self.table["clean"]) - 1
        return int(self.table["clean"][: last + 1].sum())

    # The model's answers ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """Logits. Each call freezes the model anew, for inside one a parametrization draws its numbers only once."""
        with frozen(self.model):
            return torch.cat([self.model(part) for part in x.split(self.batch_size)])

    @cached_property
    def logits(self) -> Tensor:
        """Of the first examples."""
        return self.answers(self.shown.x)

    @cached_property
    def spread(self) -> float:
        """The mean distance between an example's largest and smallest logit; not zero."""
        return max(float((self.logits.amax(dim=1) - self.logits.amin(dim=1)).mean()), torch.finfo(torch.float32).tiny)

    @cached_property
    def unrest(self) -> float:
        """How far the logits of the same images move from pass to pass, in units of their spread."""
        again = [self.answers(self.shown.x) for _ in range(REPEATS - 1)]
        return max(self.moved(a, self.logits) for a in again)

    def moved(self, logits: Tensor, reference: Tensor) -> float:
        """The largest difference, in units of the spread; a million where there is no number."""
        return float(((logits - reference).abs().max() / self.spread).nan_to_num(nan=1e6).clamp(max=1e6))

    @property
    def stochastic(self) -> bool:
        return self.unrest > REPEAT_NOISE

    def right(self, x: Tensor) -> Tensor:
        """The share of passes in which points of the standing examples are classified right, (n,)."""
        return self._mean(lambda logits: (logits.argmax(dim=1) == self.standing.y).double(), x)

    def margins(self, x: Tensor) -> Tensor:
        """The margins of points of the standing examples, (n,)."""
        return self._mean(lambda logits: margin(logits, self.standing.y), x)

    def _mean(self, measure: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.stack([measure(self.answers(x)) for _ in range(PASSES if self.stochastic else 1)]).mean(dim=0)

    # The climbs ---------------------------------------------------------------------------------------------------

    def climb(self, slope: Slope, *, eps: float | None = None, steps: int = STEPS) -> Tensor:
        """Points for the standing examples."""
        eps = eps or self.eps
        threat, alpha = ThreatModel(self.threat.norm, eps, self.threat.box), eps * min(1.0, STEP_SIZE / steps)
        return self._batched(lambda x, y: climb(self.model, x, y, threat, slope, steps=steps, alpha=alpha))

    def slopes(self, slope: Slope) -> Tensor:
        """At the standing examples themselves, (n,D)."""
        return self._batched(lambda x, y: slope(self.model, x, y)[1].flatten(1))

    def attacked(self, attack: Attack, generator: torch.Generator) -> Tensor:
        """Points for the standing examples, from a registered attack."""
        batch = self.standing
        parts = torch.arange(len(batch), device=batch.y.device).split(self.batch_size)
        rows = [Batch(batch.x[part], batch.y[part], batch.index[part]) for part in parts]
        return torch.cat([attack(self.model, each, generator=generator) for each in rows])

    @cached_property
    def margin_slopes(self) -> Tensor:
        return self.slopes(falling_margin)

    def _batched(self, work: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        batch = self.standing
        parts = zip(batch.x.split(self.batch_size), batch.y.split(self.batch_size), strict=True)
        with frozen(self.model):
            return torch.cat([work(x, y) for x, y in parts])

    @cached_property
    def plain(self) -> Tensor:
        """Points of PGD on the cross entropy, as the record's own attacks might find them."""
        return self.climb(cross_entropy)

    @cached_property
    def after_plain(self) -> Tensor:
        """The share of passes in which they are right, (n,); below, of PGD with other gradients."""
        return self.right(self.plain)

    @cached_property
    def after_rescaled(self) -> Tensor:
        return self.right(self.climb(rescaled(SPREAD / self.spread)))

    @cached_property
    def after_smoothed(self) -> Tensor:
        generator = seeds.generator(self.standing.x.device, self.seed, "sanity", "smoothed")
        sigma = self.eps if self.threat.norm == "Linf" else SIGMA
        return self.right(self.climb(smoothed(sigma, PAIRS, generator)))

    @cached_property
    def after_averaged(self) -> Tensor:
        return self.right(self.climb(averaged(cross_entropy, PASSES)))
