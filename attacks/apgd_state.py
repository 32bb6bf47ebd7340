"""The loop of Auto-PGD (Croce and Hein, 2020) and its state, shared by the dense and the sparse (L1) form."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from attacks.ascent import is_misclassified, per_example
from attacks.losses import Loss, loss_of
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel


@dataclass(kw_only=True)
class ApgdState(ABC):
    """The state of Auto-PGD for the examples that are not yet broken, one row each.

    A subclass defines the step and the rule that changes the step size.
    """

    x: Tensor
    y: Tensor
    threat: ThreatModel
    steps: int
    point: Tensor
    rows: Tensor = field(init=False)  # (b,), of the batch
    eps: Tensor = field(init=False)  # (b,)
    step_size: Tensor = field(init=False)  # (b,)
    gradient: Tensor = field(init=False)  # at the point
    best_point: Tensor = field(init=False)  # of the highest loss so far
    best_gradient: Tensor = field(init=False)
    best_loss: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows = torch.arange(len(self.x), device=self.x.device)
        self.eps = torch.as_tensor(self.threat.eps, dtype=self.x.dtype, device=self.x.device).expand(len(self.x))
        self.gradient = self.best_point = self.best_gradient = self.point
        self.best_loss = torch.full((len(self.x),), -torch.inf, device=self.x.device)

    @abstractmethod
    def move(self, project: Callable[[Tensor], Tensor]) -> None:
        """Take a step from the point."""

    @abstractmethod
    def adapt(self, step: int, losses: Tensor) -> None:
        """Change the step size if step number `step` is a checkpoint, given the losses (b,) at the points."""

    def of(self, rows: Tensor) -> Self:
        """The state of some of the examples."""
        part = copy(self)
        part.threat = self.threat.of(rows)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(part, name, value[rows])
        return part

    def update_best(self, losses: Tensor) -> None:
        """Update the best points with the current points and their losses (b,)."""
        higher = losses > self.best_loss
        self.best_loss = torch.where(higher, losses, self.best_loss)
        self.best_point = torch.where(per_example(higher, self.x), self.point, self.best_point)
        self.best_gradient = torch.where(per_example(higher, self.x), self.gradient, self.best_gradient)

    def return_to_best(self, which: Tensor) -> None:
        """Continue from the best point, for the examples `which` (b,) bool."""
        self.point = torch.where(per_example(which, self.x), self.best_point, self.point)
        self.gradient = torch.where(per_example(which, self.x), self.best_gradient, self.gradient)


def run_apgd(
    model: nn.Module, state: ApgdState, loss: Loss, *, stop_when_misclassified: bool = True
) -> tuple[Tensor, Tensor]:
    """Run all steps from the state's points. Returns the point of the highest loss met (B,C,H,W), and that loss (B,).

    An example stops at its first misclassified point and costs no more passes; its loss is infinite.
    """
    x_adv, final_loss = state.point.clone(), torch.full_like(state.best_loss, torch.inf)
    project = state.threat.projector(state.x)
    for step in range(state.steps + 1):
        if step > 0:
            state.move(project)
        misclassified, losses, state.gradient = loss_and_gradient(
            model, state.point, state.y, loss, state.rows, step < state.steps
        )
        if stop_when_misclassified and misclassified.any():
            x_adv[state.rows[misclassified]] = state.point[misclassified]
            remaining = (~misclassified).nonzero().squeeze(1)
            if len(remaining) == 0:
                return x_adv, final_loss
            state, losses, loss = state.of(remaining), losses[remaining], loss_of(loss, remaining)
            project = state.threat.projector(state.x)
        state.update_best(losses)
        state.adapt(step, losses)
    x_adv[state.rows], final_loss[state.rows] = state.best_point, state.best_loss
    return x_adv, final_loss


def loss_and_gradient(
    model: nn.Module, point: Tensor, y: Tensor, loss: Loss, rows: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """At points (b,C,H,W) for the `rows` (b,) of the batch: which are misclassified, the losses, and their gradients.

    The gradients are zero without `differentiate`, which saves the backward pass.
    """
    point = point.detach().requires_grad_(differentiate)
    with on_rows(rows), torch.set_grad_enabled(differentiate):
        logits = model(point)
        losses = loss(logits, y)
        gradient = torch.autograd.grad(losses.sum(), point)[0] if differentiate else torch.zeros_like(point)
    return is_misclassified(logits.detach(), y), losses.detach().float(), gradient
