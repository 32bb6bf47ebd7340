"""Projected gradient ascent, the loop that attacks and defenses share, and what belongs to its steps."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.losses import Loss, cross_entropy, loss_of, margin
from bench.core.contracts import mode_of
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel, unit_l2

Step = Literal["auto", "sign", "l2", "raw"]


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
    stop_when_misclassified: bool = False,
) -> Tensor:
    """Take `steps` projected gradient steps on the loss from `start`, and return the last point, (B,C,H,W).

    alpha: the step size, a number or (B,), or a function that computes it from the gradient.
    loss: per example; only its gradient with respect to the input is computed.
    mode: of the model during the attack, restored afterwards.
    step: "sign", "l2" (the gradient divided by its norm) or "raw"; "auto" or None: "sign" under Linf, else "l2".
    visit(x_adv, logits): called with each point at which a gradient is taken, so not with the returned point.
    stop_when_misclassified: an example stops at its first misclassified point, or when its iterates start to cycle, and
    costs no more passes.
    """
    project = threat.projector(x)
    if step is None or step == "auto":
        step = "sign" if threat.norm == "Linf" else "l2"
    x_adv, previous = start.detach(), None
    rows, final = torch.arange(len(x), device=x.device), x_adv.clone() if stop_when_misclassified else x_adv
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
            length = per_example(length, x) if isinstance(length, Tensor) else length
            following = project(x_adv + length * direction(gradient, step))
            if stop_when_misclassified:
                finished = is_misclassified(logits.detach(), y)
                if previous is not None:  # after a step back to the previous point, the iterates repeat
                    finished |= (following == previous).flatten(1).all(dim=1)
                if finished.any():
                    final[rows[finished]] = x_adv[finished]
                    stay = (~finished).nonzero().squeeze(1)
                    rows, x, y, x_adv, following = (t[stay] for t in (rows, x, y, x_adv, following))
                    alpha = alpha[stay] if isinstance(alpha, Tensor) and alpha.numel() > 1 else alpha
                    loss, threat = loss_of(loss, stay), threat.of(stay)
                    project = threat.projector(x)
                    if len(rows) == 0:
                        break
            previous, x_adv = x_adv, following
    if stop_when_misclassified:
        final[rows] = x_adv
        return final
    return x_adv


def is_misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Which examples are misclassified, (B,) bool; examples with a non-finite logit count as misclassified."""
    return (logits.argmax(dim=1) != y) | ~logits.isfinite().all(dim=1)


def direction(gradient: Tensor, step: Literal["sign", "l2", "raw"]) -> Tensor:
    """The direction of a step: the gradient's sign, the gradient divided by its L2 norm, or the gradient itself."""
    if step == "raw":
        return gradient
    return gradient.sign() if step == "sign" else unit_l2(gradient)


def without_blocked_pixels(step: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """A step from x (B,...), set to zero at pixels on the border of the box that would leave it."""
    if threat.box is None:
        return step
    low, high = threat.box
    return step.masked_fill(((x <= low) & (step < 0)) | ((x >= high) & (step > 0)), 0)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """One value per example, (B,), reshaped to broadcast against images `like` (B,C,H,W); floats in its dtype."""
    values = values.to(like.dtype) if values.is_floating_point() else values
    return values.reshape(-1, *[1] * (like.dim() - 1))


class WorstPoint:
    """The point of the highest loss so far of each example.

    The default loss is the negative margin, so that a misclassified point always replaces a correctly classified one.
    """

    def __init__(self, x: Tensor, y: Tensor, loss: Loss = lambda logits, y: -margin(logits, y)) -> None:
        self.point, self.y, self.loss = x.clone(), y, loss
        self.highest_loss = torch.full((len(y),), float("-inf"), device=x.device)

    def update(self, x_adv: Tensor, logits: Tensor) -> None:
        """Update with points x_adv (B,C,H,W) and their logits (B,K)."""
        losses = self.loss(logits.float(), self.y)
        # a point with a logit that is not finite is kept, so that the evaluator finds it
        losses = torch.where(logits.isfinite().all(dim=1), losses, torch.inf)
        worse = losses > self.highest_loss
        self.point[worse] = x_adv[worse]
        self.highest_loss[worse] = losses[worse]
