"""FAB, the fast adaptive boundary attack (Croce and Hein, 2020), and its projection onto a plane inside the box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.losses import best_wrong, gap, others_by_logit
from attacks.minimum_norm import ROUNDING, Nearest, boundary, column, fooled
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import Norm

SEARCH_STEPS = 3  # of the final search, as published
AIM = 3 * ROUNDING  # of the largest logit: how far beyond a boundary a step aims, so that it ends on a wrong point
WIDTH = 64  # how many coordinates the L1 projection sorts at first; it seldom needs more
NO_BOX = (-1e30, 1e30)  # finite, so that nothing is 0 * inf
TINY = 1e-12


@registry.attack("fab")
@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Fast adaptive boundary attack: steps onto the linearised decision boundary, drawn towards the image.

    Croce and Hein (2020), Algorithm 1. Untargeted, a step goes for the class whose linearised boundary is nearest, at
    one backward pass for each wrong class. Targeted (as in AutoAttack), `targets` classes are tried one after the
    other, the likeliest of the clean image first, at one backward pass a step. until_eps: an example leaves as soon as
    it has a point within eps; else it goes on to its nearest point, and eps matters to restarts alone. Deviation: what
    the model gets wrong by no more than rounding does not count as wrong.
    """

    norms = ("Linf", "L2", "L1")
    minimum_norm = True

    steps: int = 100
    restarts: int = 1
    targeted: bool = False
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    until_eps: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise UserError("fab takes alpha_max from 0 to 1, eta of at least 1, and beta between 0 and 1")

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        nearest = Nearest(model, batch, self.threat)
        wrong = others_by_logit(nearest.logits, batch.y)[:, : self.targets if self.targeted else None]
        goals = wrong.split(1, dim=1) if self.targeted else (wrong,)
        for restart in range(self.restarts):
            for classes in goals:
                rows = self._unfinished(nearest).nonzero().squeeze(1)
                start = batch.x[rows] if restart == 0 else self._random_start(nearest, rows, generator)
                self._approach(model, nearest, start, rows, classes)
        found = self._unfinished(nearest) & nearest.distance.isfinite()
        self._final_search(model, nearest, found.nonzero().squeeze(1))
        return nearest.point

    def _unfinished(self, nearest: Nearest) -> Tensor:
        """Which examples to work on, (B,) bool: those that the model gets right, until they are near enough."""
        return nearest.distance > (self.threat.eps_like(nearest.distance) if self.until_eps else 0)

    def _random_start(self, nearest: Nearest, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Points half as far from the images of `rows` (b,) as the nearest that was found, or as eps; in the box."""
        x, threat, distance = nearest.x[rows], self.threat.of(rows), nearest.distance[rows]
        delta = threat.random_delta(x, generator)
        radius = torch.minimum(distance, threat.eps_like(distance)) / 2
        return nearest.clamp(x + (delta * column(radius / size(delta, threat.norm), delta)).to(x.dtype))

    def _approach(self, model: nn.Module, nearest: Nearest, x_adv: Tensor, rows: Tensor, classes: Tensor) -> None:
        """Lines 5 to 18: from the points x_adv (b,C,H,W) of `rows` (b,) to the boundaries with `classes` (B,k)."""
        norm, box = self.threat.norm, self.threat.box or NO_BOX
        x, y, classes = nearest.x[rows], nearest.y[rows], classes[rows]
        for _ in range(self.steps):
            if len(rows) == 0:
                break
            with on_rows(rows):
                height, w, _ = boundary(model, x_adv, y, classes, norm, AIM)
            height_at_x = height + torch.linalg.vecdot(w.flatten(1), (x - x_adv).flatten(1))
            delta, delta_at_x = onto_plane(x_adv, w, height, norm, box), onto_plane(x, w, height_at_x, norm, box)
            length, length_at_x = size(delta, norm), size(delta_at_x, norm)
            alpha = (length / (length + length_at_x).clamp(min=TINY)).clamp(max=self.alpha_max)  # Eq. 9
            x_adv = torch.lerp(x_adv + self.eta * delta, x + self.eta * delta_at_x, column(alpha, x))
            x_adv = nearest.clamp(x_adv)
            with on_rows(rows), torch.no_grad():
                wrong = fooled(model(x_adv), y)
            nearest.see(x_adv, wrong, rows)
            x_adv[wrong] = torch.lerp(x[wrong], x_adv[wrong], self.beta)
            going = self._unfinished(nearest)[rows]
            if not going.all():
                rows, x, y, classes, x_adv = (each[going] for each in (rows, x, y, classes, x_adv))

    @torch.no_grad()
    def _final_search(self, model: nn.Module, nearest: Nearest, rows: Tensor) -> None:
        """Eq. 12: secant steps on the segments from the images of `rows` (b,) to their nearest points."""
        if len(rows) == 0:
            return
        y, right, wrong = nearest.y[rows], nearest.x[rows], nearest.point[rows]
        with on_rows(rows):
            logits = model(wrong)
            other, aim = best_wrong(logits, y).indices, AIM * logits.abs().amax(dim=1)
            above, below = gap(nearest.logits[rows], y, other), gap(logits, y, other)
            for _ in range(SEARCH_STEPS):
                share = ((-aim - below) / (above - below).clamp(min=TINY)).clamp(0, 1)
                point = torch.lerp(wrong, right, column(share, right))
                logits = model(point)
                there = fooled(logits, y)
                nearest.see(point, there, rows)
                found = gap(logits, y, other)
                wrong[there], below[there] = point[there], found[there]
                right[~there], above[~there] = point[~there], found[~there]


def onto_plane(x: Tensor, w: Tensor, height: Tensor, norm: Norm, box: tuple[float, float]) -> Tensor:
    """The smallest delta in `norm` for which <w, delta> = -height and x + delta is in the box.

    x, w, delta (B,...), height (B,). Where the plane misses the box, delta goes to the corner that is nearest to it.
    """
    flat, w = x.flatten(1), w.flatten(1)
    scale = w.abs().amax(dim=1).clamp(min=TINY)
    w = w * (-height.sign() / scale)[:, None]  # so that the way is up, and nothing underflows
    rise = (height.abs() / scale)[:, None]
    low, high = box
    room = ((high - low) / 2 - w.sign() * (flat - (high + low) / 2)).clamp(min=0)
    if norm == "L1":
        return _steepest_first(w, room, rise).view_as(x)
    # All coordinates move at once, at the speed of w (L2) or all at the same speed (Linf), until their room is used up.
    speed = w if norm == "L2" else w.sign()
    until = room / speed.abs().clamp(min=TINY)
    return (speed * torch.minimum(until, _time(w * speed, until, rise))).view_as(x)


def _time(gain: Tensor, until: Tensor, rise: Tensor) -> Tensor:
    """The t (B,1) at which sum_i gain_i min(t, until_i) reaches `rise` (B,1); beyond all `until` where it never does.

    The sum is concave and piecewise linear in t, so Newton's method from t = 0 only ever steps forward, and ends on the
    exact t when a step has passed no more kinks: after a few of them, where sorting the kinks would cost much more.
    """
    t, slope_before = torch.zeros_like(rise), torch.full_like(rise, torch.inf)
    buffer = torch.empty_like(until)
    while True:
        slope = torch.gt(until, t, out=buffer).mul_(gain).sum(dim=1, keepdim=True)
        if not (slope < slope_before).any():
            return t
        climbed = torch.minimum(until, t, out=buffer).mul_(gain).sum(dim=1, keepdim=True)
        t, slope_before = t + (rise - climbed).clamp(min=0) / slope.clamp(min=TINY), slope


def _steepest_first(w: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """The L1 projection: the coordinates of the largest |w_i| use up their room one after the other."""
    width = min(WIDTH, w.shape[1])
    while True:
        steep, order = w.abs().topk(width, dim=1)
        reach = room.gather(1, order)
        gain = steep * reach
        climbed = gain.cumsum(dim=1)
        if width == w.shape[1] or (climbed[:, -1:] >= rise).all():
            break
        width = min(4 * width, w.shape[1])
    share = ((rise - (climbed - gain)) / gain.clamp(min=TINY)).clamp(0, 1)
    return torch.zeros_like(w).scatter(1, order, share * reach) * w.sign()


def size(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each delta (B,...), (B,), in its own precision."""
    flat = delta.flatten(1)
    if norm == "L2":
        return torch.linalg.vector_norm(flat, dim=1)
    return flat.abs().amax(dim=1) if norm == "Linf" else flat.abs().sum(dim=1)
