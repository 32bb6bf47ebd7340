"""Shared by the minimum-norm attacks: the nearest adversarial points found, and the linearised class boundaries."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attacks.ascent import per_example, without_blocked_pixels
from attacks.losses import margin, others_by_logit
from bench.core.contracts import Batch
from bench.core.passes import on_rows
from bench.core.threat import TINY, ThreatModel

CHECKS = 5  # number of checks of all points together in one batch at the end
FARTHER = 1.001  # the factor by which the perturbation of a point that fails this check is scaled
FIRST_DOUBLINGS = -20  # the first step that leaves a tie is 2 to this power
ROUNDING = 2e-6  # of the largest logit: float32 logits were seen to change by up to 7e-7 with the size of the batch


class NearestAdversarial:
    """The nearest adversarial point found so far of each example.

    point (B,C,H,W): the clean image if none was found. distance (B,) float64, in the threat's norm: zero if the clean
    image is misclassified, infinite if no adversarial point was found. logits (B,K): of the clean images.
    rows (b,): the examples to attack, which are the correctly classified ones.

    An image whose label ties with another class counts as correct if the label has the lower index (argmax). A margin
    of zero gives the attacks no step size, so this class searches the first adversarial point of such images.
    """

    def __init__(self, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
        self.model, self.x, self.y, self.threat = model, batch.x, batch.y, threat
        with torch.no_grad():
            self.logits = model(batch.x)
        self.point = batch.x.clone()
        correct = self.logits.argmax(dim=1) == batch.y
        self.distance = torch.zeros(len(batch), dtype=torch.float64, device=batch.x.device)
        self.distance[correct] = torch.inf
        self.rows = correct.nonzero().squeeze(1)
        tied = (correct & (margin(self.logits, self.y) <= rounding(self.logits))).nonzero().squeeze(1)
        if len(tied) > 0:
            self._leave_tie(tied)

    def _leave_tie(self, rows: Tensor) -> None:
        """Take doubling steps from the images of `rows` (b,), towards the tied class of the largest gradient."""
        x, y, logits = self.x[rows], self.y[rows], self.logits[rows]
        steepest, norm = torch.zeros_like(x), torch.zeros_like(rows, dtype=x.dtype)
        with on_rows(rows):
            for gap_to_class, gradient in linearised(self.model, x, y, others_by_logit(logits, y)):
                uphill = without_blocked_pixels(-gradient, x, self.threat)
                larger = (gap_to_class <= rounding(logits)) & (self.threat.dual_norm(uphill) > norm)
                steepest[larger], norm[larger] = uphill[larger], self.threat.dual_norm(uphill)[larger]
            for doublings in range(FIRST_DOUBLINGS, 1):
                x_adv = self.threat.clamp(x + 2.0**doublings * self.threat.steepest(steepest))
                with torch.no_grad():
                    adversarial = clearly_misclassified(self.model(x_adv), y)
                self.update(x_adv, adversarial, rows)

    def update(self, x_adv: Tensor, adversarial: Tensor, rows: Tensor) -> None:
        """Update with points x_adv (b,C,H,W) of `rows` (b,); `adversarial` (b,) bool marks the adversarial ones."""
        x_adv, rows = x_adv.detach()[adversarial], rows[adversarial]
        distance = self.threat.distance(x_adv, self.x[rows])
        nearer = distance < self.distance[rows]
        self.point[rows[nearer]] = x_adv[nearer]
        self.distance[rows[nearer]] = distance[nearer]

    @torch.no_grad()
    def bisect(self, path: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, rows: Tensor, times: int) -> None:
        """`times` bisections of each row's path (b,) -> (b,C,H,W), from correct at `low` to adversarial at `high`."""
        if len(rows) == 0:
            return
        with on_rows(rows):
            for _ in range(times):
                middle = (low + high) / 2
                x_adv = path(middle)
                adversarial = clearly_misclassified(self.model(x_adv), self.y[rows])
                self.update(x_adv, adversarial, rows)
                low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)

    def finish(self, halvings: int) -> Tensor:
        """The points after bisection towards the clean images, moved out until misclassified as one batch."""
        rows = self.rows[self.distance[self.rows].isfinite()]
        x = self.x[rows]
        delta = self.point[rows] - x
        low, high = torch.zeros_like(rows, dtype=x.dtype), torch.ones_like(rows, dtype=x.dtype)
        self.bisect(lambda t: x + per_example(t, x) * delta, low, high, rows, halvings)
        for _ in range(CHECKS if len(rows) else 0):
            with torch.no_grad():
                correct = rows[(self.model(self.point).argmax(dim=1) == self.y)[rows]]
            if len(correct) == 0:
                break
            x = self.x[correct]
            self.point[correct] = self.threat.clamp(x + FARTHER * (self.point[correct] - x))
        return self.point


def clearly_misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Where an incorrect class leads by more than the rounding error: (B,) bool."""
    logits = logits.detach().float()
    return margin(logits, y) < -rounding(logits)


def rounding(logits: Tensor) -> Tensor:
    """The largest change of the margin by rounding: (B,)."""
    return ROUNDING * logits.abs().amax(dim=1)


def linearised(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, aim: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each column l of `classes` (b,T), z_y - z_l at x (b,C,H,W) and its gradient there: (b,) and (b,C,H,W).

    One backward pass each. aim: added to the values, in units of the largest logit.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits.gather(1, classes) + aim * logits.detach().abs().amax(1, keepdim=True)
    for k, value in enumerate(gaps.unbind(dim=1), start=1):
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=k < gaps.shape[1])
        yield value.detach(), gradient


def nearest_boundary(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, threat: ThreatModel, aim: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest boundary of label y in the linearisation of the model at x (b,C,H,W), among `classes` (b,T).

    Returns z_y - z_l (b,) for the class l behind it, its gradient (b,C,H,W), and that class (b,).
    """
    boundaries = linearised(model, x, y, classes, aim)
    value, gradient = next(boundaries)
    value, target = value.clone(), classes[:, 0].clone()
    least = signed_distance(value, gradient, threat).abs() if classes.shape[1] > 1 else value
    for (other_value, other_gradient), other_class in zip(boundaries, classes.T[1:], strict=True):
        distance = signed_distance(other_value, other_gradient, threat).abs()
        nearer = distance < least
        value[nearer], gradient[nearer] = other_value[nearer], other_gradient[nearer]
        target[nearer] = other_class[nearer]
        least = torch.minimum(distance, least)
    return value, gradient, target


def signed_distance(value: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """The distance (B,), in the threat's norm, to the zero set of a linear function with this value and gradient."""
    return value / threat.dual_norm(gradient).clamp(min=TINY)
