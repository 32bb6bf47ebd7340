"""Auto-PGD (Croce and Hein, 2020): an ascent whose step size adapts itself to each example."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.apgd_l1 import ascend_sparsely
from attacks.apgd_state import Walk
from attacks.losses import Loss, cross_entropy, dlr, dlr_towards, others_by_logit
from attacks.pgd import Step, direction, look, until_broken
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel

MOMENTUM = 0.75
RISING = 0.75  # the share of steps that must rise between two checkpoints for the step size to stay


@dataclass
class _Walk(Walk):
    height: Tensor  # the loss at the point
    before: Tensor  # x(k-1)
    rises: Tensor  # steps since the last checkpoint that rose
    halved: Tensor  # whether the step size was, at the last checkpoint
    top_then: Tensor  # the highest loss at the last checkpoint


def ascend_adaptively(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    loss: Callable[[Tensor], Loss],
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1, Linf or L2: the point of the highest loss that was met (B,C,H,W), and that loss (B,).

    loss(rows) is the loss of some of the examples. An example stays at the first point that the model gets wrong and
    costs no more passes; its loss is infinite.
    """
    kind: Step = "sign" if threat.norm == "Linf" else "l2"
    best, best_loss = start.clone(), torch.full((len(x),), torch.inf, device=x.device)
    low = torch.full_like(best_loss, -torch.inf)
    length = 2 * torch.as_tensor(threat.eps, dtype=x.dtype, device=x.device).expand(len(x))
    walk = _Walk(
        torch.arange(len(x), device=x.device), x, y, start, start, start, start, low, length,
        low, start, torch.zeros_like(low), torch.ones_like(low, dtype=torch.bool), low,
    )  # fmt: skip
    project, momentum = threat.projector(x), 1.0
    width = until_checkpoint = max(int(0.22 * steps), 1)
    for step in range(steps + 1):
        if step > 0:
            z = project(walk.point + walk.sideways(walk.length) * direction(walk.gradient, kind))
            z = walk.point + momentum * (z - walk.point) + (1 - momentum) * (walk.point - walk.before)
            walk.point, walk.before = project(z) if momentum < 1 else z, walk.point
            momentum = MOMENTUM
        wrong, values, walk.gradient = look(model, walk.point, walk.y, loss(walk.rows), walk.rows, step < steps)
        if wrong.any():
            best[walk.rows[wrong]] = walk.point[wrong]
            stay = (~wrong).nonzero().squeeze(1)
            if len(stay) == 0:
                return best, best_loss
            walk, values = walk.of(stay), values[stay]
            project = threat.of(walk.rows).projector(walk.x)
        walk.rises += values > walk.height
        walk.height = values
        walk.remember(values)
        if step == 0:
            walk.rises.zero_()
            continue
        until_checkpoint -= 1
        if until_checkpoint == 0:
            stuck = (walk.rises < RISING * width) | (~walk.halved & (walk.top <= walk.top_then))
            walk.length = torch.where(stuck, walk.length / 2, walk.length)
            walk.go_back(stuck)
            walk.rises, walk.halved, walk.top_then = torch.zeros_like(walk.rises), stuck, walk.top
            width = until_checkpoint = max(width - int(0.03 * steps), int(0.06 * steps), 1)
    best[walk.rows], best_loss[walk.rows] = walk.top_point, walk.top
    return best, best_loss


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """What the variants share: random starts, and under L1 the sparse form of the algorithm."""

    norms = ("Linf", "L2", "L1")
    fewest: ClassVar[int] = 2  # classes for which the loss is defined

    steps: int = 100
    restarts: int = 1

    def check_fits(self, shape: tuple[int, ...], classes: int) -> None:
        if classes < self.fewest:
            name = type(self).__name__
            raise UserError(f"{name} needs at least {self.fewest} classes, not {classes}, for its loss; use apgd-ce")

    def ascend(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        loss: Callable[[Tensor], Loss],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """One run from a random start: the highest points (b,C,H,W) and their losses, infinite where one is wrong."""
        run = ascend_sparsely if threat.norm == "L1" else ascend_adaptively
        return run(model, x, y, threat=threat, steps=self.steps, loss=loss, start=threat.random_start(x, generator))


@dataclass(frozen=True, kw_only=True)
class OneByOne(APGD):
    """One run for each loss and restart, on what no earlier one has broken."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Iterable[Callable[[Tensor], Loss]]:
        """The losses: rows (b,) of the batch -> the loss of these rows."""

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        def run(rows: Tensor, loss: Callable[[Tensor], Loss]) -> Tensor:
            x, y, threat = batch.x[rows], batch.y[rows], self.threat.of(rows)
            return self.ascend(model, x, y, threat, lambda some: loss(rows[some]), generator)[0]

        losses = self.losses(model, batch)
        return until_broken(model, batch, [partial(run, loss=loss) for loss in losses for _ in range(self.restarts)])


@registry.attack("apgd-ce")
@dataclass(frozen=True, kw_only=True)
class APGDCE(OneByOne):
    """Auto-PGD on the cross entropy, from random starts. Croce and Hein (2020); under L1 Croce and Hein (2021)."""

    def losses(self, model: nn.Module, batch: Batch) -> Iterable[Callable[[Tensor], Loss]]:
        return [lambda _: cross_entropy]


@registry.attack("apgd-dlr")
@dataclass(frozen=True, kw_only=True)
class APGDDLR(OneByOne):
    """Auto-PGD on the difference-of-logits ratio, which scaling the logits does not change. Three classes or more."""

    fewest = 3

    def losses(self, model: nn.Module, batch: Batch) -> Iterable[Callable[[Tensor], Loss]]:
        return [lambda _: dlr]


@registry.attack("apgd-t")
@dataclass(frozen=True, kw_only=True)
class APGDT(OneByOne):
    """Auto-PGD on the targeted ratio, one class after another in the order of the model's logits. Four classes or more.

    Croce and Hein (2020), the APGD-T of AutoAttack. `targets` classes at most, each on what no earlier one has broken.
    """

    fewest = 4

    targets: int = 9

    def losses(self, model: nn.Module, batch: Batch) -> Iterable[Callable[[Tensor], Loss]]:
        with torch.no_grad():
            order = others_by_logit(model(batch.x), batch.y)[:, : self.targets]
        return [_towards(target) for target in order.T]


def _towards(target: Tensor) -> Callable[[Tensor], Loss]:
    return lambda rows: dlr_towards(target[rows])
