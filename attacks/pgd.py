"""Projected gradient descent (Madry et al., 2018), and the one ascent loop of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.losses import BY_NAME, Loss, cross_entropy, margin
from bench.core import registry
from bench.core.contracts import Attack, Batch, mode_of
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel

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
) -> tuple[Tensor, Tensor]:
    """`steps` projected gradient steps up the loss from `start`: (x_adv (B,C,H,W), last_gradient (B,C,H,W)).

    alpha: the step size, a number or (B,), or a function that gives it from the gradient. step: "sign" (default under
    Linf), "l2" (the gradient over its norm; default under L2) or "raw". The gradient is of each example's own loss, and
    of the input only: no weight's gradient is touched. mode: of the model during the attack, restored afterwards.
    visit(x_adv, logits) sees each point at which the gradient is taken; the point that is returned it does not see.
    """
    project = threat.projector(x)
    step = step or ("sign" if threat.norm == "Linf" else "l2")
    x_adv, gradient = start.detach(), torch.zeros_like(x)
    with mode_of(model, training=mode == "train"):
        for _ in range(steps):
            x_adv.requires_grad_()
            logits = model(x_adv)
            (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x_adv)
            x_adv = x_adv.detach()
            if visit is not None:
                visit(x_adv, logits.detach())
            length = torch.as_tensor(alpha(gradient) if callable(alpha) else alpha, dtype=x.dtype, device=x.device)
            length = length.reshape(-1, *[1] * (x.dim() - 1))
            x_adv = project(x_adv + length * direction(gradient, step))
    return x_adv, gradient


def direction(gradient: Tensor, step: Step) -> Tensor:
    """Where a step of size one goes: the gradient's sign, the gradient over its L2 norm, or the gradient."""
    if step == "sign":
        return gradient.sign()
    if step == "raw":
        return gradient
    norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp(min=1e-12)
    return gradient / norm.reshape(-1, *[1] * (gradient.dim() - 1))


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
    """Projected gradient descent from random starts; keeps the worst iterate, the last included.

    Madry et al. (2018). A restart attacks only the examples that no earlier one has broken. Under L1 there is none:
    its steepest steps need care that `apgd` takes.
    """

    steps: int = 10
    restarts: int = 1
    alpha: Length = OfEps(0.25)
    random_start: bool = True
    loss: Literal["ce", "reflected"] = "ce"
    step: Literal["auto", "sign", "l2", "raw"] = "auto"

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        worst = Worst(batch.x, batch.y)
        for _ in range(self.restarts):
            rows = (worst.height < 0).nonzero().squeeze(1)  # right with a margin at each point so far
            if len(rows) == 0:
                break
            x, y, threat = batch.x[rows], batch.y[rows], self.threat.of(rows)
            x_adv, _ = ascend(
                model,
                x,
                y,
                threat=threat,
                steps=self.steps,
                alpha=in_units(self.alpha, threat.eps),
                start=threat.random_start(x, generator) if self.random_start else x,
                loss=BY_NAME[self.loss],
                step=None if self.step == "auto" else self.step,
                visit=lambda point, logits, rows=rows: worst.see(point, logits, rows),  # type: ignore[misc]
            )
            with torch.no_grad():
                worst.see(x_adv, model(x_adv), rows)
        return worst.point
