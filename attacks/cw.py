"""The attacks of Carlini and Wagner (2017), L2 and Linf."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import per_example
from attacks.losses import gap, margin, others_by_logit
from attacks.minimum_norm import NearestAdversarial, clearly_misclassified, nearest_boundary
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel

STAGES, MIN_GAIN, MAX_FAILURES = 20, 0.01, 3  # stages of a run, the gain that each needs, and how many may miss it
LARGEST_SHRINK = 0.995  # the Linf search ends when tau shrinks by less than this factor
INSIDE = 0.999999  # keeps the ends of the box finite in tanh space, as in the authors' code


@registry.attack("cw")
@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Adam in tanh space on the size of the perturbation plus c times the logit gap; c is searched for each example.

    Carlini and Wagner (2017), sections V and VI, untargeted, confidence 0 (more would not give the nearest point). L2:
    a binary search for c, in `search_steps` runs of at most `steps`. Linf: the loss penalises the part of each pixel's
    perturbation that exceeds tau; tau shrinks to `shrink` times the distance reached, and c doubles if a run fails.
    Deviations:
    - The authors' code takes up to 10,000 steps a run, and starts from c = 0.001 (L2) or 1e-5 (Linf, with lr 0.005).
    - The gap is to the class, of `targets` ones, whose linearised boundary is nearest and, once an adversarial point is
      known, to the best incorrect class. The latter alone leads to the most likely class even if it is farther away.
    - Every run starts from the nearest adversarial point so far (the authors' only under Linf). c therefore counts as
      large enough if the end of the run meets adversarial points (in the authors' code: if any step does).
    - The authors' run ends if a tenth of its steps gains less than 0.01 %. Here the step size is divided by ten if a
      twentieth of the steps gains less than 1 %; the third time ends the run.
    - The authors' Linf attack ends at the first tau that no c reaches, with an error of up to 10 %. Here a failed run
      doubles c and takes the square root of the factor of tau, down to 0.5 %. No step exceeds tau / 5.
    - `halvings` bisections on the segment to the clean image follow.
    """

    minimum_norm = True

    steps: int = 1000  # largest number of Adam steps for each c
    search_steps: int = 9  # values of c
    initial_c: float = 0.01  # first value of c
    largest_c: float = 20.0  # largest value of c under Linf
    lr: float = 0.01  # learning rate of Adam
    shrink: float = 0.9  # Linf: factor of tau after a run that succeeds
    targets: int = 9  # target classes, those of the highest logits
    halvings: int = 10  # bisections between the adversarial point and the image

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search_steps < 1 or self.initial_c <= 0 or self.lr <= 0 or not 0 < self.shrink < 1:
            raise UserError("cw needs search_steps >= 1, initial_c > 0, lr > 0 and 0 < shrink < 1")

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        _box(threat)

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        nearest = NearestAdversarial(model, batch, threat)
        rows = nearest.rows
        if len(rows) == 0:
            return nearest.point
        with on_rows(rows):
            x, y = batch.x[rows], batch.y[rows]
            classes = others_by_logit(nearest.logits[rows], y)[:, : self.targets]
            target = batch.y.index_put((rows,), nearest_boundary(model, x, y, classes, threat)[2])
        search = self._search_c if threat.norm == "L2" else self._shrink_tau
        search(nearest, target)
        return nearest.finish(self.halvings)

    def _search_c(self, nearest: NearestAdversarial, target: Tensor) -> None:
        """L2: search for the smallest sufficient c, by factors of ten and then by bisection."""
        c = torch.full_like(nearest.distance, self.initial_c, dtype=nearest.x.dtype)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.search_steps):
            succeeded = self._minimize(nearest, nearest.rows, target, c)
            low, high = torch.where(succeeded, low, c), torch.where(succeeded, c, high)
            c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)

    def _shrink_tau(self, nearest: NearestAdversarial, target: Tensor) -> None:
        """Linf: shrink tau, from the width of the box, below the distance reached."""
        low, high = _box(nearest.threat)
        rows = nearest.rows
        c = torch.full_like(nearest.distance, self.initial_c, dtype=nearest.x.dtype)
        shrink, tau = torch.full_like(c, self.shrink), torch.full_like(c, high - low)
        while len(rows):
            succeeded = self._minimize(nearest, rows, target, c, tau)
            best = nearest.distance.to(c.dtype)
            c = torch.where(succeeded, c, 2 * c)
            shrink = torch.where(succeeded | best.isinf(), shrink, shrink.sqrt())
            tau = torch.where(best.isinf(), tau, shrink * best)
            rows = rows[((shrink < LARGEST_SHRINK) & (c <= self.largest_c))[rows]]

    def _minimize(
        self, nearest: NearestAdversarial, rows: Tensor, target: Tensor, c: Tensor, tau: Tensor | None = None
    ) -> Tensor:
        """One run for `rows` (b,); target, c and (under Linf) tau are (B,).

        Returns a mask (B,) of the examples that met an adversarial point in their last stage. Under Linf this point
        must be within tau, and ends the run of its example.
        """
        lr = torch.full_like(c, self.lr) if tau is None else (tau / 5).clamp(max=self.lr)
        lowest_loss, previous_loss = torch.full_like(c, torch.inf), torch.full_like(c, torch.inf)
        succeeded, failures = torch.zeros_like(target, dtype=torch.bool), torch.zeros_like(target)
        low, high = _box(nearest.threat)
        x, w = nearest.x[rows], (INSIDE * (2 * (nearest.point[rows] - low) / (high - low) - 1)).atanh()
        adam = Adam(w)
        stage = max(self.steps // STAGES, 1)
        for step in range(self.steps):
            w.requires_grad_()
            x_adv = low + (high - low) * (w.tanh() + 1) / 2
            with on_rows(rows):
                logits = nearest.model(x_adv)
                loss = _size(x_adv - x, tau, rows) + c[rows] * _gap(logits, nearest, rows, target).clamp(min=0)
                (gradient,) = torch.autograd.grad(loss.sum(), w)
            w = w.detach() - adam.step(gradient, lr[rows])
            adversarial = clearly_misclassified(logits, nearest.y[rows])
            nearest.update(x_adv, adversarial, rows)
            if tau is not None:
                adversarial &= nearest.threat.distance(x_adv.detach(), x) <= tau[rows]
            succeeded[rows] = adversarial if step % stage == 0 else succeeded[rows] | adversarial
            lowest_loss[rows] = torch.minimum(lowest_loss[rows], loss.detach())
            if (step + 1) % stage == 0:
                stuck = rows[lowest_loss[rows] > (1 - MIN_GAIN) * previous_loss[rows]]
                failures[stuck] += 1
                lr[stuck] /= 10
                previous_loss[rows] = lowest_loss[rows]
            going = failures[rows] < MAX_FAILURES
            going = going if tau is None else going & ~adversarial
            if not going.all():
                rows, x, w = rows[going], x[going], w[going]
                adam.keep(going)
            if len(rows) == 0:
                break
        return succeeded


class Adam:
    """Adam (Kingma and Ba, 2015) with a learning rate per example, for a shrinking set of examples."""

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square, self.steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, gradient: Tensor, lr: Tensor) -> Tensor:
        """The update to subtract from the variables (b,...), given their gradient and the learning rates (b,)."""
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (self.square / (1 - 0.999**self.steps)).sqrt() + 1e-8
        return per_example(lr / (1 - 0.9**self.steps), gradient) * self.mean / size

    def keep(self, rows: Tensor) -> None:
        """Drop the examples that are not in `rows`, (b,) bool."""
        self.mean, self.square = self.mean[rows], self.square[rows]


def _box(threat: ThreatModel) -> tuple[float, float]:
    if threat.box is None:
        raise UserError("cw works in the tanh space of a box, and this threat model has none; use fmn or deepfool")
    return threat.box


def _size(delta: Tensor, tau: Tensor | None, rows: Tensor) -> Tensor:
    """The squared L2 norm (b,); with tau (B,), the sum over the pixels of the excess over tau."""
    if tau is None:
        return delta.square().flatten(1).sum(dim=1)
    return (delta.abs() - per_example(tau[rows], delta)).clamp(min=0).flatten(1).sum(dim=1)


def _gap(logits: Tensor, nearest: NearestAdversarial, rows: Tensor, target: Tensor) -> Tensor:
    """The gap to the target (b,) while no adversarial point is known, then to the best incorrect class."""
    y = nearest.y[rows]
    return torch.where(nearest.distance[rows].isfinite(), margin(logits, y), gap(logits, y, target[rows]))
