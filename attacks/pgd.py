"""Projected gradient descent (Madry et al., 2018), and the ascent loop that attacks and defenses share."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.losses import Loss, cross_entropy, loss_of, margin
from attacks.step_sizes import check_decay, decaying_steps
from bench.core import registry
from bench.core.contracts import Attack, Batch, mode_of
from bench.core.passes import on_rows
from bench.core.specs import Length, OfEps, in_units
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


@dataclass(frozen=True, kw_only=True)
class SequentialAttack(Attack):
    """One run per loss and restart, each on the examples that no earlier one has broken."""

    steps: int = 10  # gradient steps
    restarts: int = 1  # starts, each on the examples that are left

    @abstractmethod
    def run(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, loss: Loss, generator: torch.Generator
    ) -> Tensor:
        """Run the attack once and return x_adv (B,C,H,W)."""

    def losses(self, model: nn.Module, batch: Batch) -> Sequence[Loss]:
        """The losses to maximize, one after another."""
        return [cross_entropy]

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x_adv, rows = batch.x.clone(), torch.arange(len(batch), device=batch.x.device)
        runs = [loss for loss in self.losses(model, batch) for _ in range(self.restarts)]
        for number, loss in enumerate(runs, start=1):
            part = rows_of(batch, rows)
            with on_rows(rows):
                x_adv[rows] = self.run(model, part, threat.of(rows), loss_of(loss, rows), generator)
                if number < len(runs):
                    with torch.no_grad():
                        rows = rows[~is_misclassified(model(x_adv[rows]), part.y)]
            if len(rows) == 0:
                break
        return x_adv


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some rows (b,) of a batch."""
    return Batch(batch.x[rows], batch.y[rows], batch.index[rows])


@registry.attack("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(SequentialAttack):
    """Projected gradient descent from random starts. Returns the first misclassified point, else the last one.

    Madry et al. (2018). A restart attacks only the examples that no earlier one has broken. L1 is not supported,
    because steepest steps need the special treatment of `apgd-ce` there.
    """

    alpha: Length = OfEps(0.25)  # step size
    random_start: bool = True  # start at a uniform point of the ball, not at the image
    step: Step = "auto"  # sign, L2-normalised or raw gradient; auto: by the norm
    decay: float = 1.0  # factor of the step size
    decay_every: int = 10  # steps between two decays
    stop_when_misclassified: bool = True  # an example stops at its first misclassified point; false: it takes all steps

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay, self.decay_every)

    def run(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, loss: Loss, generator: torch.Generator
    ) -> Tensor:
        x_adv = threat.random_start(batch.x, generator) if self.random_start else batch.x
        for steps, alpha in decaying_steps(self.steps, in_units(self.alpha, threat.eps), self.decay, self.decay_every):
            x_adv = ascend(  # stop_when_misclassified: a broken example costs one pass per call and no more
                model, batch.x, batch.y, threat=threat, steps=steps, alpha=alpha, loss=loss, start=x_adv,
                step=self.step, stop_when_misclassified=self.stop_when_misclassified,
            )  # fmt: skip
        return x_adv
