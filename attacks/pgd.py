"""Projected gradient descent (Madry et al., 2018), and the one ascent loop of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.losses import Loss, Towards, cross_entropy, margin
from bench.core import registry
from bench.core.contracts import Attack, Batch, mode_of
from bench.core.passes import on_rows
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import TINY, ThreatModel

Step = Literal["sign", "l2", "raw"]


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    alpha: float | Tensor | Callable[[Tensor], Tensor],
    start: Tensor,
    loss: Loss = cross_entropy,
    mode: Literal["eval", "train"] = "eval",
    step: Step | None = None,
    visit: Callable[[Tensor, Tensor], None] | None = None,
    leave: bool = False,
) -> tuple[Tensor, Tensor]:
    """`steps` projected gradient steps up the loss from `start`: (x_adv (B,C,H,W), last_gradient (B,C,H,W)).

    alpha: the step size, a number or (B,), or a function that gives it from the gradient. step: "sign" (default under
    Linf), "l2" (the gradient over its norm; default under L2) or "raw". The gradient is of each example's own loss, and
    of the input only: no weight's gradient is touched. mode: of the model during the attack, restored afterwards.
    visit(x_adv, logits) sees each point at which the gradient is taken; the point that is returned it does not see.
    leave: an example stays at the first point that the model gets wrong, or where its steps begin to go in circles, and
    costs no more passes; the gradient that is returned is then of those that went on to the end.
    """
    project = threat.projector(x)
    step = step or ("sign" if threat.norm == "Linf" else "l2")
    x_adv, gradient = start.detach(), torch.zeros_like(x)
    before: Tensor | None = None
    rows, left = torch.arange(len(x), device=x.device), start.detach().clone() if leave else start
    with mode_of(model, training=mode == "train"):
        for _ in range(steps):
            x_adv.requires_grad_()
            with on_rows(rows):
                logits = model(x_adv)
                (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x_adv)
            x_adv = x_adv.detach()
            if visit is not None:
                visit(x_adv, logits.detach())
            length = alpha(gradient) if callable(alpha) else alpha
            if isinstance(length, Tensor):
                length = length.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
            after = project(x_adv + length * direction(gradient, step))
            if leave:
                done = is_wrong(logits.detach(), y)
                if before is not None:  # back where it was: from here on it goes in circles, through points it has seen
                    done |= (after == before).flatten(1).all(dim=1)
                if done.any():
                    left[rows[done]] = x_adv[done]
                    stay = (~done).nonzero().squeeze(1)
                    rows, x, y, x_adv, after = rows[stay], x[stay], y[stay], x_adv[stay], after[stay]
                    alpha = alpha[stay] if isinstance(alpha, Tensor) and alpha.numel() > 1 else alpha
                    loss = loss.of(stay) if isinstance(loss, Towards) else loss
                    threat = threat.of(stay)
                    project = threat.projector(x)
                    if len(rows) == 0:
                        break
            before, x_adv = x_adv, after
    if leave:
        left[rows] = x_adv
        x_adv = left
    return x_adv, gradient


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where the model errs, (B,) bool: another class, or no answer (which the evaluator, asking again, refuses)."""
    return (logits.argmax(dim=1) != y) | ~logits.isfinite().all(dim=1)


def look(
    model: nn.Module, point: Tensor, y: Tensor, loss: Loss, rows: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of points (b,C,H,W) that are rows of the batch: where the model errs, the losses, the gradient of each loss.

    Without `differentiate` the gradient, which nobody asked for, is zero.
    """
    point = point.detach().requires_grad_(differentiate)
    with on_rows(rows), torch.set_grad_enabled(differentiate):
        logits = model(point)
        values = loss(logits, y)
        gradient = torch.autograd.grad(values.sum(), point)[0] if differentiate else torch.zeros_like(point)
    return is_wrong(logits.detach(), y), values.detach().float(), gradient


def direction(gradient: Tensor, step: Step) -> Tensor:
    """Where a step of size one goes: the gradient's sign, the gradient over its L2 norm, or the gradient."""
    if step == "sign":
        return gradient.sign()
    if step == "raw":
        return gradient
    sideways = [-1, *[1] * (gradient.dim() - 1)]
    # over its largest entry first: the squares of a confident model's gradient are zero in float32
    gradient = gradient / gradient.flatten(1).abs().amax(dim=1).clamp(min=TINY).reshape(sideways)
    return gradient / torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp(min=TINY).reshape(sideways)


class Worst:
    """The point of the highest loss that was seen of each example.

    By default the loss is minus the margin, so that the worst point is a wrong one where any was wrong.
    """

    def __init__(self, x: Tensor, y: Tensor, loss: Loss = lambda logits, y: -margin(logits, y)) -> None:
        self.point, self.y, self.loss = x.clone(), y, loss
        self.height = torch.full((len(y),), float("-inf"), device=x.device)

    def see(self, x_adv: Tensor, logits: Tensor, rows: Tensor | None = None) -> None:
        """Points x_adv (b,C,H,W) and their logits, of all examples or of `rows` (b,)."""
        rows = torch.arange(len(self.y), device=x_adv.device) if rows is None else rows
        found = self.loss(logits.float(), self.y[rows])
        # a point where the model has no answer is kept, so that whoever asks it again there finds out
        found = torch.where(logits.isfinite().all(dim=1), found, torch.inf)
        worse = found > self.height[rows]
        self.point[rows[worse]] = x_adv[worse]
        self.height[rows[worse]] = found[worse]


@registry.attack("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent from random starts; an example stays at the first wrong point, else at the last.

    Madry et al. (2018). A restart attacks only the examples that no earlier one has broken. Under L1 there is none:
    its steepest steps need care that `apgd-ce` takes.
    """

    steps: int = 10
    restarts: int = 1
    alpha: Length = OfEps(0.25)
    random_start: bool = True
    step: Literal["auto", "sign", "l2", "raw"] = "auto"

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        return until_broken(model, batch, [partial(self.run, model, batch, generator=generator)] * self.restarts)

    def run(
        self, model: nn.Module, batch: Batch, rows: Tensor, generator: torch.Generator, loss: Loss = cross_entropy
    ) -> Tensor:
        """One run on some rows (b,) of the batch, whose loss it climbs: x_adv (b,C,H,W)."""
        x, threat = batch.x[rows], self.threat.of(rows)
        x_adv, _ = ascend(
            model,
            x,
            batch.y[rows],
            threat=threat,
            steps=self.steps,
            alpha=in_units(self.alpha, threat.eps),
            start=threat.random_start(x, generator) if self.random_start else x,
            loss=loss,
            step=None if self.step == "auto" else self.step,
            leave=True,
        )
        return x_adv


def until_broken(model: nn.Module, batch: Batch, runs: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """x_adv (B,C,H,W) of several runs, each on the rows (b,) of the batch that are still right: run(rows) -> points."""
    x_adv, rows = batch.x.clone(), torch.arange(len(batch), device=batch.x.device)
    for number, run in enumerate(runs, start=1):
        with on_rows(rows):
            x_adv[rows] = run(rows)
            if number < len(runs):
                with torch.no_grad():
                    rows = rows[~is_wrong(model(x_adv[rows]), batch.y[rows])]
        if len(rows) == 0:
            break
    return x_adv
