"""The fast adaptive boundary attack (Croce and Hein, 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import per_example
from attacks.losses import best_other_class, gap, others_by_logit
from attacks.minimum_norm import ROUNDING, NearestAdversarial, clearly_misclassified, nearest_boundary
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import ORDER, Norm, ThreatModel

SEARCH_STEPS = 3  # of the final search, as published
AIM = 3 * ROUNDING  # of the largest logit: a step aims this far beyond a boundary, to end on a misclassified point
L1_COORDINATES = 64  # number of coordinates that the L1 projection sorts at first; it seldom needs more
NO_BOX = (-1e30, 1e30)  # finite, to avoid 0 * inf
FLOOR = 1e-12  # of denominators that may be 0


@registry.attack("fab")
@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Fast adaptive boundary attack: steps onto the linearised decision boundary, biased towards the clean image.

    Croce and Hein (2020), Algorithm 1. Untargeted, a step goes to the nearest linearised boundary, which costs one
    backward pass per incorrect class. Targeted (as in AutoAttack), `targets` classes are attacked one after another, by
    decreasing logit at the clean image, with one backward pass a step. Without `until_eps` the search for the nearest
    point continues within eps, and eps only matters to restarts. Deviation: a point that is misclassified by a margin
    within rounding error does not count.
    """

    norms = ("Linf", "L2", "L1")
    minimum_norm = True

    steps: int = 100  # gradient steps
    restarts: int = 1  # starts, each on the examples that are left
    targeted: bool = False  # towards one class after another, not to the nearest boundary
    targets: int = 9  # target classes, those of the highest logits
    alpha_max: float = 0.1  # largest weight of the bias towards the image
    eta: float = 1.05  # overshoot: the factor of a step
    beta: float = 0.9  # backward step: the share of the perturbation that is kept
    until_eps: bool = False  # an example stops at its first point within eps

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise UserError("fab needs 0 <= alpha_max <= 1, eta >= 1 and 0 < beta < 1")

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        nearest = NearestAdversarial(model, batch, threat)
        others = others_by_logit(nearest.logits, batch.y)[:, : self.targets if self.targeted else None]
        for restart in range(self.restarts):
            for classes in others.split(1, dim=1) if self.targeted else (others,):
                rows = self._unfinished(nearest).nonzero().squeeze(1)
                start = batch.x[rows] if restart == 0 else self._random_start(nearest, rows, generator)
                self._approach(nearest, start, rows, classes)
        broken = self._unfinished(nearest) & nearest.distance.isfinite()
        self._final_search(nearest, broken.nonzero().squeeze(1))
        return nearest.point

    def _unfinished(self, nearest: NearestAdversarial) -> Tensor:
        """Which examples to attack, (B,) bool: correctly classified, and (until_eps) without a point within eps."""
        return nearest.distance > (nearest.threat.eps_like(nearest.distance) if self.until_eps else 0)

    def _random_start(self, nearest: NearestAdversarial, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Points in the box around the images of `rows` (b,), at half the nearest point's distance or half of eps."""
        x, threat, distance = nearest.x[rows], nearest.threat.of(rows), nearest.distance[rows]
        delta = threat.random_delta(x, generator)
        radius = torch.minimum(distance, threat.eps_like(distance)) / 2
        return threat.clamp(x + (delta * per_example(radius / norm_of(delta, threat.norm), delta)).to(x.dtype))

    def _approach(self, nearest: NearestAdversarial, x_adv: Tensor, rows: Tensor, classes: Tensor) -> None:
        """Lines 5 to 18: from the points x_adv (b,C,H,W) of `rows` (b,) to the boundaries with `classes` (B,k)."""
        threat = nearest.threat
        norm, box = threat.norm, threat.box or NO_BOX
        x, y, classes = nearest.x[rows], nearest.y[rows], classes[rows]
        for _ in range(self.steps):
            if len(rows) == 0:
                break
            with on_rows(rows):
                value, w, _ = nearest_boundary(nearest.model, x_adv, y, classes, threat, AIM)
            value_at_x = value + torch.linalg.vecdot(w.flatten(1), (x - x_adv).flatten(1))
            delta, delta_at_x = onto_plane(x_adv, w, value, norm, box), onto_plane(x, w, value_at_x, norm, box)
            length, length_at_x = norm_of(delta, norm), norm_of(delta_at_x, norm)
            alpha = (length / (length + length_at_x).clamp(min=FLOOR)).clamp(max=self.alpha_max)  # Eq. 9
            x_adv = torch.lerp(x_adv + self.eta * delta, x + self.eta * delta_at_x, per_example(alpha, x))
            x_adv = threat.clamp(x_adv)
            with on_rows(rows), torch.no_grad():
                adversarial = clearly_misclassified(nearest.model(x_adv), y)
            nearest.update(x_adv, adversarial, rows)
            x_adv[adversarial] = torch.lerp(x[adversarial], x_adv[adversarial], self.beta)
            going = self._unfinished(nearest)[rows]
            if not going.all():
                rows, x, y, classes, x_adv = (t[going] for t in (rows, x, y, classes, x_adv))

    @torch.no_grad()
    def _final_search(self, nearest: NearestAdversarial, rows: Tensor) -> None:
        """Eq. 12: secant steps on the segments from the images of `rows` (b,) to their nearest points."""
        if len(rows) == 0:
            return
        y, correct, adversarial = nearest.y[rows], nearest.x[rows], nearest.point[rows]
        with on_rows(rows):
            logits = nearest.model(adversarial)
            other, aim = best_other_class(logits, y).indices, AIM * logits.abs().amax(dim=1)
            gap_correct, gap_adversarial = gap(nearest.logits[rows], y, other), gap(logits, y, other)
            for _ in range(SEARCH_STEPS):
                share = ((-aim - gap_adversarial) / (gap_correct - gap_adversarial).clamp(min=FLOOR)).clamp(0, 1)
                point = torch.lerp(adversarial, correct, per_example(share, correct))
                logits = nearest.model(point)
                broken = clearly_misclassified(logits, y)
                nearest.update(point, broken, rows)
                new_gap = gap(logits, y, other)
                adversarial[broken], gap_adversarial[broken] = point[broken], new_gap[broken]
                correct[~broken], gap_correct[~broken] = point[~broken], new_gap[~broken]


def onto_plane(x: Tensor, w: Tensor, value: Tensor, norm: Norm, box: tuple[float, float]) -> Tensor:
    """The smallest delta in `norm` for which <w, delta> = -value and x + delta is in the box.

    x, w, delta (B,...), value (B,). If the plane does not meet the box, delta leads to the corner nearest to it.
    """
    flat, w = x.flatten(1), w.flatten(1)
    scale = w.abs().amax(dim=1).clamp(min=FLOOR)
    w = w * (-value.sign() / scale)[:, None]  # so that <w, delta> has to be positive, and nothing underflows
    increase = (value.abs() / scale)[:, None]
    low, high = box
    room = ((high - low) / 2 - w.sign() * (flat - (high + low) / 2)).clamp(min=0)
    if norm == "L1":
        return _largest_first(w, room, increase).view_as(x)
    # All coordinates move at once, at the speed of w (L2) or at the same speed (Linf), until their room is used up.
    speed = w if norm == "L2" else w.sign()
    until = room / speed.abs().clamp(min=FLOOR)
    return (speed * torch.minimum(until, _time(w * speed, until, increase))).view_as(x)


def _time(gain: Tensor, until: Tensor, increase: Tensor) -> Tensor:
    """The t (B,1) that solves sum_i gain_i min(t, until_i) = `increase` (B,1); beyond all `until` if there is none.

    The sum is concave and piecewise linear in t. Newton's method from t = 0 therefore never overshoots, and ends on the
    exact t once a step passes no more kinks. That takes a few steps; sorting the kinks would cost much more.
    """
    t, previous_slope = torch.zeros_like(increase), torch.full_like(increase, torch.inf)
    buffer = torch.empty_like(until)
    while True:
        slope = torch.gt(until, t, out=buffer).mul_(gain).sum(dim=1, keepdim=True)
        if not (slope < previous_slope).any():
            return t
        reached = torch.minimum(until, t, out=buffer).mul_(gain).sum(dim=1, keepdim=True)
        t, previous_slope = t + (increase - reached).clamp(min=0) / slope.clamp(min=FLOOR), slope


def _largest_first(w: Tensor, room: Tensor, increase: Tensor) -> Tensor:
    """The L1 projection: the coordinates use up their room one after another, by decreasing |w_i|."""
    count = min(L1_COORDINATES, w.shape[1])
    while True:
        largest, order = w.abs().topk(count, dim=1)
        largest_room = room.gather(1, order)
        gain = largest * largest_room
        total = gain.cumsum(dim=1)
        if count == w.shape[1] or (total[:, -1:] >= increase).all():
            break
        count = min(4 * count, w.shape[1])
    share = ((increase - (total - gain)) / gain.clamp(min=FLOOR)).clamp(0, 1)
    return torch.zeros_like(w).scatter(1, order, share * largest_room) * w.sign()


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm (B,) of each delta (B,...), in delta's precision."""
    flat = delta.flatten(1)
    return flat.abs().sum(dim=1) if norm == "L1" else torch.linalg.vector_norm(flat, ord=ORDER[norm], dim=1)
