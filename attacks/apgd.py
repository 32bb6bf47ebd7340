"""Auto-PGD (Croce and Hein, 2020): gradient ascent with a step size that adapts to each example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.apgd_l1 import SparseState
from attacks.apgd_state import ApgdState, run_apgd
from attacks.ascent import per_example
from attacks.losses import Loss, TargetedDLR, dlr, likeliest_targets
from attacks.sequential_attack import SequentialAttack
from bench.core import registry
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel

MOMENTUM = 0.75  # alpha
INCREASING_SHARE = 0.75  # rho: the share of steps that must increase the loss for the step size to stay
L1_SHARES = {3: 0.3, 2: 0.3}  # under L1, the share of the steps in the balls of 3 and 2 eps; the rest are in 1 eps


@dataclass(kw_only=True)
class DenseState(ApgdState):
    """Algorithm 1 of Croce and Hein (2020), for Linf and L2."""

    checkpoints: dict[int, int] = field(init=False)
    loss: Tensor = field(init=False)  # at the point
    previous_point: Tensor = field(init=False)  # x(k-1)
    increases: Tensor = field(init=False)  # the number of steps since the last checkpoint that increased the loss
    halved: Tensor = field(init=False)  # whether the step size was halved at the last checkpoint
    checkpoint_loss: Tensor = field(init=False)  # best_loss at the last checkpoint
    momentum: float = 1.0  # 1 in the first step

    def __post_init__(self) -> None:
        super().__post_init__()
        self.step_size, self.checkpoints = 2 * self.eps, checkpoints(self.steps)
        self.loss, self.previous_point = -self.best_loss, self.point  # infinite: the start is not an increase
        self.increases, self.checkpoint_loss = torch.zeros_like(self.best_loss), self.best_loss
        self.halved = torch.ones_like(self.best_loss, dtype=torch.bool)

    def move(self, project: Callable[[Tensor], Tensor]) -> None:
        z = project(self.point + per_example(self.step_size, self.x) * self.threat.steepest(self.gradient))
        z = self.point + self.momentum * (z - self.point) + (1 - self.momentum) * (self.point - self.previous_point)
        self.point, self.previous_point = project(z) if self.momentum < 1 else z, self.point
        self.momentum = MOMENTUM

    def adapt(self, step: int, losses: Tensor) -> None:
        self.increases += losses > self.loss
        self.loss = losses
        if step in self.checkpoints:
            too_few = self.increases < INCREASING_SHARE * self.checkpoints[step]  # condition 1
            stuck = too_few | (~self.halved & (self.best_loss <= self.checkpoint_loss))  # or condition 2
            self.step_size = torch.where(stuck, self.step_size / 2, self.step_size)
            self.return_to_best(stuck)
            self.increases, self.halved = torch.zeros_like(self.increases), stuck
            self.checkpoint_loss = self.best_loss


def checkpoints(steps: int) -> dict[int, int]:
    """The steps after which the step size may change, each with the number of steps since the previous one.

    As in the authors' code, which rounds the intervals down; Algorithm 1 of the paper rounds the checkpoints up.
    """
    interval, step, intervals = max(int(0.22 * steps), 1), 0, dict[int, int]()
    while (step := step + interval) <= steps:
        intervals[step] = interval
        interval = max(interval - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return intervals


def auto_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    loss: Loss,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Auto-PGD for images x (B,C,H,W) with labels y (B,): the point of the highest loss met, and that loss (B,).

    An example stops at its first misclassified point and costs no more passes; its loss is infinite. Under L1 there are
    three runs, in balls of 3, 2 and 1 eps, so `steps` is at least 3. Each starts from the best point of the previous
    run, and only the last run stops at misclassified points.
    """
    if threat.norm != "L1":
        return run_apgd(model, DenseState(x=x, y=y, threat=threat, steps=steps, point=start), loss)
    parts = {factor: max(round(share * steps), 1) for factor, share in L1_SHARES.items()}
    for factor, ball_steps in (parts | {1: steps - sum(parts.values())}).items():
        ball = ThreatModel(threat.norm, factor * threat.eps, threat.box)
        state = SparseState(x=x, y=y, threat=ball, steps=ball_steps, point=ball.project(start, x))
        start, best_loss = run_apgd(model, state, loss, stop_when_misclassified=factor == 1)
    return start, best_loss


@dataclass(frozen=True, kw_only=True)
class APGD(SequentialAttack):
    """Base class of the Auto-PGD attacks, with random starts. The point of a robust example is its last run's."""

    norms = ("Linf", "L2", "L1")
    min_classes: ClassVar[int] = 2  # for which the loss is defined

    steps: int = 100  # gradient steps

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        if classes < self.min_classes:
            name, fewest = type(self).__name__, self.min_classes
            raise UserError(f"{name} needs at least {fewest} classes for its loss, not {classes}; use apgd-ce")
        if threat.norm == "L1" and self.steps < 3:
            raise UserError(f"steps is {self.steps}; under L1 Auto-PGD needs at least 3, one for each of three balls")

    def run(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, loss: Loss, generator: torch.Generator
    ) -> Tensor:
        start = threat.random_start(batch.x, generator)
        return auto_pgd(model, batch.x, batch.y, threat=threat, steps=self.steps, loss=loss, start=start)[0]


@registry.attack("apgd-ce")
@dataclass(frozen=True, kw_only=True)
class APGDCE(APGD):
    """Auto-PGD on the cross entropy, from random starts. Croce and Hein (2020); under L1 Croce and Hein (2021)."""


@registry.attack("apgd-dlr")
@dataclass(frozen=True, kw_only=True)
class APGDDLR(APGD):
    """Auto-PGD on the DLR loss, which does not depend on the scale of the logits. Three classes or more."""

    min_classes = 3

    def losses(self, model: nn.Module, batch: Batch) -> Sequence[Loss]:
        return [dlr]


@registry.attack("apgd-t")
@dataclass(frozen=True, kw_only=True)
class APGDT(APGD):
    """Auto-PGD on the targeted DLR loss, for one target class after another by decreasing logit. Four classes or more.

    Croce and Hein (2020), the APGD-T of AutoAttack. targets: the largest number of target classes; each run attacks the
    examples that no earlier one has broken.
    """

    min_classes = 4

    targets: int = 9  # target classes, those of the highest logits

    def losses(self, model: nn.Module, batch: Batch) -> Sequence[Loss]:
        return [TargetedDLR(target) for target in likeliest_targets(model, batch.x, batch.y, self.targets)]
