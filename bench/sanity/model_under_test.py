"""The model under test: a few examples, the model's outputs for them, and short attacks on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from bench.core import seeds
from bench.core.contracts import Attack, Batch, frozen
from bench.core.example_table import Flags, Table, attack_specs, survivors
from bench.core.spec_text import split_spec, split_steps
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.sanity.ascent import (
    Gradient,
    averaged,
    cross_entropy_gradient,
    margin,
    margin_gradient,
    projected_ascent,
    rescaled,
    smoothed,
)

EXAMPLES = 64  # enough to distinguish 5 % from 20 %, and few enough to run for every record
STEPS = 20
STEP_SIZE = 2.5  # times eps / steps: the rule of thumb of Madry et al. (2018), so that the steps can cross the ball
REPEATS = 4  # passes over the same images, to detect a stochastic model
REPEAT_NOISE = 1e-4  # of the logits' spread; a repeated pass differs by 0, or by rounding on a GPU
PASSES = 8  # over which accuracy and gradient of a stochastic model are averaged
SPREAD = 20.0  # of rescaled logits: on six sound models no other of 2 to 50 was stronger by more than 0.02
PAIRS = 16  # of opposite points for a smoothed gradient
SIGMA = 0.1  # of its noise under L2 and L1, where eps spread over all pixels would be too small
RESCALED, SMOOTHED, AVERAGED = "rescaled logits", "a smoothed gradient", f"the mean gradient of {PASSES} passes"


@dataclass(frozen=True)
class AttackColumn:
    """A `robust/SPEC` column: the attack's name, its options as text, and which examples are robust."""

    spec: str
    name: str
    options: dict[str, str]
    robust: Flags

    @classmethod
    def of(cls, spec: str, robust: Flags) -> AttackColumn:
        name, options = split_spec(spec)
        name, steps = split_steps(name)
        return cls(spec, name, options if steps is None else options | {"steps": str(steps)}, robust)

    @property
    def own_threat(self) -> bool:
        """Whether it is under the record's threat model, not under another that its options give."""
        return not {"eps", "norm"} & set(self.options)


@dataclass(frozen=True)
class ModelUnderTest:
    """A model and some of its examples. What several checks need is measured once, at its first use.

    test: the split of the table's rows. ball: the record's threat model, with one eps for all examples; None if it has
    no norm, as for corruptions.
    """

    model: nn.Module
    test: Split
    ball: ThreatModel | None
    table: Table
    seed: int
    batch_size: int
    _correct_after: dict[str, Tensor] = field(default_factory=dict, init=False)

    @property
    def threat(self) -> ThreatModel:
        assert self.ball is not None, "nothing can be attacked without a threat model"
        return self.ball

    @property
    def eps(self) -> float:
        return float(self.threat.eps)

    @cached_property
    def columns(self) -> list[AttackColumn]:
        return [AttackColumn.of(spec, self.table[f"robust/{spec}"]) for spec in attack_specs(self.table)]

    @cached_property
    def first(self) -> Batch:
        """The first examples of the split."""
        return self.test.take(torch.arange(min(EXAMPLES, len(self.test)), device=self.test.y.device))

    @cached_property
    def robust(self) -> Batch:
        """The first examples that the record counts as robust (correct, if it has no attack); none without a norm."""
        rows = np.flatnonzero(survivors(self.table))[: EXAMPLES if self.ball else 0]
        index = self.table["index"][rows]
        return self.test.take(torch.from_numpy(index).to(self.test.y.device))

    @property
    def n_correct(self) -> int:
        """How many correctly classified examples there are up to the last of `robust`.

        Signs are counted as shares of this: the few robust examples of a model that is nearly broken are robust by
        chance, and show signs on sound models too.
        """
        end = np.flatnonzero(survivors(self.table))[EXAMPLES - 1 : EXAMPLES] + 1
        return int(self.table["clean"][: end[0] if len(end) else None].sum())

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Freeze the model in each call, because a parametrization draws its random numbers only once while frozen."""
        with frozen(self.model):
            return torch.cat([self.model(part) for part in x.split(self.batch_size)])

    @cached_property
    def first_logits(self) -> Tensor:
        return self.logits(self.first.x)

    @cached_property
    def spread(self) -> float:
        """The mean distance between the largest and smallest logit of an example; not zero."""
        logits = self.first_logits
        return max(float((logits.amax(dim=1) - logits.amin(dim=1)).mean()), torch.finfo(torch.float32).tiny)

    @cached_property
    def repeat_difference(self) -> float:
        """The largest difference of the logits of the same images between passes, in units of the spread."""
        repeated = [self.logits(self.first.x) for _ in range(REPEATS - 1)]
        return max(self.difference(logits, self.first_logits) for logits in repeated)

    def difference(self, logits: Tensor, reference: Tensor) -> float:
        """The largest difference, in units of the spread; a million if it is not a number."""
        return float(((logits - reference).abs().max() / self.spread).nan_to_num(nan=1e6).clamp(max=1e6))

    @property
    def stochastic(self) -> bool:
        return self.repeat_difference > REPEAT_NOISE

    def share_correct(self, x: Tensor) -> Tensor:
        """The share of passes in which points of the robust examples are classified correctly, (n,)."""
        return self._mean(lambda logits: (logits.argmax(dim=1) == self.robust.y).double(), x)

    def margins(self, x: Tensor) -> Tensor:
        """The margins of points of the robust examples, (n,)."""
        return self._mean(lambda logits: margin(logits, self.robust.y), x)

    def _mean(self, measure: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.stack([measure(self.logits(x)) for _ in range(PASSES if self.stochastic else 1)]).mean(dim=0)

    def ascend(self, gradient: Gradient, *, eps: float | None = None, steps: int = STEPS) -> Tensor:
        """The worst points of projected ascent from the robust examples."""
        eps = eps or self.eps
        threat, alpha = replace(self.threat, eps=eps), eps * min(1.0, STEP_SIZE / steps)
        return self._batched(
            lambda b: projected_ascent(self.model, b.x, b.y, threat, gradient, steps=steps, alpha=alpha)
        )

    def gradients(self, gradient: Gradient) -> Tensor:
        """The gradients at the examples themselves, (n,D)."""
        return self._batched(lambda batch: gradient(self.model, batch.x, batch.y)[1].flatten(1))

    def attacked(self, attack: Attack, generator: torch.Generator) -> Tensor:
        """The points of a registered attack."""
        batches = (self.test.take(index) for index in self.robust.index.split(self.batch_size))
        return torch.cat([attack(self.model, batch, self.threat, generator=generator) for batch in batches])

    @cached_property
    def margin_gradients(self) -> Tensor:
        return self.gradients(margin_gradient)

    def _batched(self, work: Callable[[Batch], Tensor]) -> Tensor:
        with frozen(self.model):
            return torch.cat([work(self.test.take(index)) for index in self.robust.index.split(self.batch_size)])

    @cached_property
    def pgd(self) -> Tensor:
        """Points of PGD on the cross entropy, as the record's own attacks might find them."""
        return self.ascend(cross_entropy_gradient)

    @cached_property
    def correct_after_pgd(self) -> Tensor:
        """The share of passes in which these points are classified correctly, (n,)."""
        return self.share_correct(self.pgd)

    def correct_after(self, remedy: str) -> Tensor:
        """The same for PGD along a gradient with a remedy: RESCALED, SMOOTHED or AVERAGED."""
        if remedy not in self._correct_after:
            if remedy == RESCALED:
                gradient = rescaled(SPREAD / self.spread)
            elif remedy == SMOOTHED:
                generator = seeds.generator(self.robust.x.device, self.seed, "sanity", "smoothed")
                gradient = smoothed(self.eps if self.threat.norm == "Linf" else SIGMA, PAIRS, generator)
            else:
                gradient = averaged(cross_entropy_gradient, PASSES)
            self._correct_after[remedy] = self.share_correct(self.ascend(gradient))
        return self._correct_after[remedy]
