"""The attacks of Carlini and Wagner (2017), L2 and Linf."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.losses import gap, margin, others_by_logit
from attacks.minimum_norm import Nearest, boundary, column, fooled
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows

STRETCHES, PROGRESS, STRIKES = 20, 0.01, 3  # of a run: its parts, what each must gain, and how often one may fail to
FINEST = 0.995  # a radius that shrinks by less than this is small enough
INSIDE = 0.999999  # keeps the ends of the box at a finite place in tanh space, as the authors do


@registry.attack("cw")
@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Adam, in tanh space, on the perturbation's size plus c times the label's lead; c is searched for each example.

    Carlini and Wagner (2017), sections V and VI, untargeted, confidence 0 (more would ask for points farther away than
    the nearest). L2: a binary search for c, in `search_steps` runs of at most `steps`. Linf: what exceeds tau is
    penalised; tau falls to `shrink` times the distance reached, and c doubles where a run fails. Deviations:
    - The authors' code takes up to 10,000 steps a run, and starts from c = 0.001 (L2) or 1e-5 (Linf, with lr 0.005).
    - The lead is that over the one of `targets` classes whose linearised boundary is the nearest and, once a wrong
      point is known, over the best wrong class. The latter alone makes for the likeliest class even if it is farther.
    - Every run starts from the nearest wrong point so far (theirs, under Linf only), so c is enough where the end of
      the run meets wrong points (theirs, where any step does).
    - Their run ends when a tenth of its steps gains less than 0.01 %, with Adam still circling at that step size. Here
      the step size falls to a tenth when a twentieth gains less than 1 %, and the third time ends the run.
    - Their Linf attack ends at the first tau that no c reaches, and so knows the distance to 10 %. Here each failed run
      doubles c and also takes the root of the factor of tau, down to half a per cent; no step exceeds tau / 5.
    - `halvings` bisections on the segment to the clean image end the attack.
    """

    minimum_norm = True

    steps: int = 1000
    search_steps: int = 9
    initial_c: float = 0.01
    largest_c: float = 20.0
    lr: float = 0.01
    shrink: float = 0.9
    targets: int = 9
    halvings: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.box is None:
            raise UserError("cw works in the tanh space of a box; without one, use fmn or deepfool")
        if self.search_steps < 1 or self.initial_c <= 0 or self.lr <= 0 or not 0 < self.shrink < 1:
            raise UserError(
                "cw takes search_steps of at least 1, an initial_c and lr above 0, and shrink between 0 and 1"
            )

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        nearest = Nearest(model, batch, self.threat)
        rows = nearest.rows
        if len(rows) == 0:
            return nearest.point
        with on_rows(rows):
            x, y = batch.x[rows], batch.y[rows]
            classes = others_by_logit(nearest.logits[rows], y)[:, : self.targets]
            target = batch.y.index_put((rows,), boundary(model, x, y, classes, self.threat.norm)[2])
        search = self._search_c if self.threat.norm == "L2" else self._shrink_tau
        search(model, nearest, target)
        return nearest.finish(model, self.halvings)

    def _search_c(self, model: nn.Module, nearest: Nearest, target: Tensor) -> None:
        """L2: towards the smallest c that is enough, by factors of ten and then by halves."""
        c = torch.full_like(nearest.distance, self.initial_c, dtype=nearest.x.dtype)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.search_steps):
            enough = self._minimize(model, nearest, nearest.rows, target, c)
            low, high = torch.where(enough, low, c), torch.where(enough, c, high)
            c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)

    def _shrink_tau(self, model: nn.Module, nearest: Nearest, target: Tensor) -> None:
        """Linf: from the width of the box, below whatever has been reached."""
        assert self.threat.box is not None
        rows = nearest.rows
        c = torch.full_like(nearest.distance, self.initial_c, dtype=nearest.x.dtype)
        shrink, tau = torch.full_like(c, self.shrink), torch.full_like(c, self.threat.box[1] - self.threat.box[0])
        while len(rows):
            reached = self._minimize(model, nearest, rows, target, c, tau)
            best = nearest.distance.to(c.dtype)
            c = torch.where(reached, c, 2 * c)
            shrink = torch.where(reached | best.isinf(), shrink, shrink.sqrt())
            tau = torch.where(best.isinf(), tau, shrink * best)
            rows = rows[((shrink < FINEST) & (c <= self.largest_c))[rows]]

    def _minimize(
        self, model: nn.Module, nearest: Nearest, rows: Tensor, target: Tensor, c: Tensor, tau: Tensor | None = None
    ) -> Tensor:
        """One run for `rows` (b,); target, c and (under Linf) tau are (B,).

        (B,) bool: which examples met a wrong point in their last stretch; under Linf one within tau, where they leave.
        """
        rate = torch.full_like(c, self.lr) if tau is None else (tau / 5).clamp(max=self.lr)
        lowest, before = torch.full_like(c, torch.inf), torch.full_like(c, torch.inf)
        met, strikes = torch.zeros_like(target, dtype=torch.bool), torch.zeros_like(target)
        x, w = nearest.x[rows], self._into_tanh(nearest.point[rows])
        adam = Adam(w)
        stretch = max(self.steps // STRETCHES, 1)
        for step in range(self.steps):
            w.requires_grad_()
            x_adv = self._out_of_tanh(w)
            with on_rows(rows):
                logits = model(x_adv)
                loss = _size(x_adv - x, tau, rows) + c[rows] * _lead(logits, nearest, rows, target).clamp(min=0)
                (gradient,) = torch.autograd.grad(loss.sum(), w)
            w = w.detach() - adam.step(gradient, rate[rows])
            wrong = fooled(logits, nearest.y[rows])
            nearest.see(x_adv, wrong, rows)
            if tau is not None:
                wrong &= nearest.threat.distance(x_adv.detach(), x) <= tau[rows]
            met[rows] = wrong if step % stretch == 0 else met[rows] | wrong
            lowest[rows] = torch.minimum(lowest[rows], loss.detach())
            if (step + 1) % stretch == 0:
                stuck = rows[lowest[rows] > (1 - PROGRESS) * before[rows]]
                strikes[stuck] += 1
                rate[stuck] /= 10
                before[rows] = lowest[rows]
            stay = strikes[rows] < STRIKES if tau is None else (strikes[rows] < STRIKES) & ~wrong
            if not stay.all():
                rows, x, w = rows[stay], x[stay], w[stay]
                adam.keep(stay)
            if len(rows) == 0:
                break
        return met

    def _into_tanh(self, x: Tensor) -> Tensor:
        low, high = self.threat.box or (0.0, 1.0)
        return (INSIDE * (2 * (x - low) / (high - low) - 1)).atanh()

    def _out_of_tanh(self, w: Tensor) -> Tensor:
        low, high = self.threat.box or (0.0, 1.0)
        return low + (high - low) * (w.tanh() + 1) / 2


class Adam:
    """Adam (Kingma and Ba, 2015) for examples of different step sizes, which leave one by one."""

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square, self.age = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, gradient: Tensor, rate: Tensor) -> Tensor:
        """What to subtract from the variables (b,...), for their gradient and the step sizes (b,)."""
        self.age += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (self.square / (1 - 0.999**self.age)).sqrt() + 1e-8
        return column(rate / (1 - 0.9**self.age), gradient) * self.mean / size

    def keep(self, which: Tensor) -> None:
        self.mean, self.square = self.mean[which], self.square[which]


def _size(delta: Tensor, tau: Tensor | None, rows: Tensor) -> Tensor:
    """The squared L2 norm; with tau (B,) what exceeds it, summed over the pixels: (b,)."""
    if tau is None:
        return delta.square().flatten(1).sum(dim=1)
    return (delta.abs() - column(tau[rows], delta)).clamp(min=0).flatten(1).sum(dim=1)


def _lead(logits: Tensor, nearest: Nearest, rows: Tensor, target: Tensor) -> Tensor:
    """The label's lead, (b,): over the target while no wrong point is known, then over the best wrong class."""
    y = nearest.y[rows]
    return torch.where(nearest.distance[rows].isfinite(), margin(logits, y), gap(logits, y, target[rows]))
