"""The threat model: a norm ball around each image, intersected with the range of pixel values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from bench.core.errors import UserError
from bench.core.example_table import Threat

Norm = Literal["Linf", "L2", "L1"]
NORMS: tuple[Norm, ...] = get_args(Norm)
ORDER: dict[Norm, float] = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}
DUAL_ORDER: dict[Norm, float] = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}
TOLERANCE = 1e-6  # of eps, in float64
TINY = 1e-30  # keeps a division by a norm of zero finite, in float32 too


@dataclass(frozen=True)
class ThreatModel:
    """All points within `eps` of an image in `norm` and inside `box`.

    norm: "Linf", "L2" or "L1". eps: a float, or a tensor (B,) with one budget per example.
    box: the range of a pixel, or None. Images are (B, ...), float32, and themselves inside the box.
    """

    norm: Norm
    eps: float | Tensor
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        parse_norm(self.norm)
        if not isinstance(self.eps, Tensor) and not (math.isfinite(self.eps) and self.eps > 0):
            raise UserError(f"eps {self.eps} must be a positive number, in the scale of images in [0, 1]")

    @classmethod
    def from_record(cls, threat: Threat) -> Self:
        """The threat model of a record, for images in [0, 1]."""
        return cls(parse_norm(threat.norm), threat.eps, (0.0, 1.0) if threat.box else None)

    def check_eps(self, shape: Sequence[int]) -> None:
        """UserError if eps exceeds the range of images of `shape` (C,H,W): it was probably meant in grey levels."""
        largest = self.largest_eps(shape)
        if self.eps > largest:
            hint = f"; write {self.eps:g}/255 for {self.eps:g} grey levels" if self.norm == "Linf" else ""
            raise UserError(f"eps {self.eps:g}: images are in [0, 1], so {self.norm} eps is in (0, {largest:g}]{hint}")

    def largest_eps(self, shape: Sequence[int]) -> float:
        """The largest distance between two images of `shape` (C,H,W): a ball of this eps contains the whole box."""
        low, high = self.box or (0.0, 1.0)
        return float((high - low) * math.prod(shape) ** (1 / ORDER[self.norm]))

    def eps_like(self, x: Tensor) -> Tensor:
        """eps in float64, shaped to broadcast against x: (B,1,...) or (1,1,...)."""
        shape = (-1, *[1] * (x.dim() - 1))
        if isinstance(self.eps, Tensor):
            return self.eps.to(x.device, torch.float64).reshape(shape)
        return torch.full((1,), self.eps, dtype=torch.float64, device=x.device).reshape(shape)  # no copy from the host

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest allowed point to x_adv. Under L2: the nearest point of the ball, then clamped to the box."""
        if self.norm == "Linf":
            return torch.clamp(x_adv, *self._interval(x))
        onto_ball = self._onto_l2_ball if self.norm == "L2" else self._onto_l1_ball_in_box
        return self.clamp(_add_towards(x, onto_ball(x_adv.double() - x.double(), x)))

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """project as a function of x_adv, for loops with one x. Under L2 and L1 in x's own precision."""
        if self.norm == "Linf":
            low, high = self._interval(x)
            return lambda x_adv: torch.clamp(x_adv, low, high)
        onto_ball = self._onto_l2_ball if self.norm == "L2" else self._onto_l1_ball_in_box
        return lambda x_adv: self.clamp(x + onto_ball(x_adv - x, x))

    def random_start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A point drawn uniformly from the ball around x, then clamped to the box."""
        return self.clamp(_add_towards(x, self.random_delta(x, generator)))

    def random_delta(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Perturbations in the shape of `like`, float64, uniform in the ball (no box)."""
        eps = self.eps_like(like)
        uniform = partial(torch.rand, generator=generator, device=like.device, dtype=torch.float64)
        if self.norm == "Linf":
            return (2 * uniform(like.shape) - 1) * eps
        radius = uniform((len(like), *eps.shape[1:])) ** (1 / math.prod(like.shape[1:]))
        if self.norm == "L2":
            direction = torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float64)
            return eps * radius * direction / _flat_norm(direction, 2)
        # exponentials over their sum are uniform on the simplex; with random signs, on the L1 sphere
        direction = -torch.log1p(-uniform(like.shape)) * (2.0 * (uniform(like.shape) < 0.5) - 1)
        return eps * radius * direction / _flat_norm(direction, 1)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of x_adv - x, (B,), in float64."""
        return _flat_norm(x_adv.double() - x.double(), ORDER[self.norm]).flatten()

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """The dual norm of a gradient, (B,): how much a linear function can change per unit of eps."""
        return _flat_norm(gradient, DUAL_ORDER[self.norm]).flatten()

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent of norm one, in the shape of `gradient` (B, ...); zero if the gradient is.

        Linf: the sign. L2: the gradient divided by its norm. L1: the coordinate of largest absolute value.
        """
        if self.norm == "Linf":
            return gradient.sign()
        if self.norm == "L2":
            return unit_l2(gradient)
        flat = gradient.flatten(1)
        largest = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).reshape(gradient.shape)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which x_adv are allowed, (B,) bool: within eps (1 + 1e-6) and inside the box; False for NaN."""
        allowed = self.distance(x_adv, x) <= self.eps_like(x).flatten() * (1 + TOLERANCE)
        if self.box is not None:
            inside = (x_adv >= self.box[0]) & (x_adv <= self.box[1])
            allowed &= inside.flatten(1).all(dim=1)
        return allowed

    def of(self, rows: Tensor | slice) -> ThreatModel:
        """The threat model of some rows of a batch."""
        if not isinstance(self.eps, Tensor):
            return self
        return ThreatModel(self.norm, self.eps[rows], self.box)

    def clamp(self, x: Tensor) -> Tensor:
        """x, clamped to the box; unchanged if there is no box."""
        return x if self.box is None else x.clamp(*self.box)

    def _interval(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eps = self.eps_like(x)
        return self.clamp(_add_towards(x, -eps)), self.clamp(_add_towards(x, eps))

    def _onto_l2_ball(self, delta: Tensor, x: Tensor) -> Tensor:
        return delta * (self.eps_like(x).to(delta.dtype) / _flat_norm(delta, 2).clamp(min=TINY)).clamp(max=1)

    def _onto_l1_ball_in_box(self, delta: Tensor, x: Tensor) -> Tensor:
        """The exact Euclidean projection onto {||d||_1 <= eps, x + d in the box}.

        It is sign(d) min(max(|d| - t, 0), room) for the t >= 0 at which its L1 norm is eps. This norm, `spent`, is
        piecewise linear in t, with kinks where a coordinate becomes smaller than its room and where it reaches zero.
        """
        size = delta.abs().flatten(1)
        eps = self.eps_like(x).to(delta.dtype).reshape(-1, 1).expand(len(x), 1)
        if self.box is None:
            room = size
        else:
            low, high = self.box
            exact = x.to(delta.dtype)
            room = torch.where(delta > 0, high - exact, exact - low).flatten(1).clamp(min=0)
        leaves = (size - room).clamp(min=0)  # from this t on the coordinate shrinks with slope -1, until t = size
        kinks, order = torch.cat([leaves, size], dim=1).sort(dim=1)
        change = torch.cat([-torch.ones_like(size), torch.ones_like(size)], dim=1).gather(1, order)
        slope = change.cumsum(dim=1)
        spent_at_zero = torch.minimum(size, room).sum(dim=1, keepdim=True)
        steps = slope[:, :-1] * kinks.diff(dim=1)
        spent = torch.cat([spent_at_zero, spent_at_zero + steps.cumsum(dim=1)], dim=1)
        # the last kink at which at least eps is spent starts the segment that holds t
        segment = ((spent >= eps).sum(dim=1, keepdim=True) - 1).clamp(min=0)
        at, rate = spent.gather(1, segment), slope.gather(1, segment)
        t = kinks.gather(1, segment) + (at - eps) / (-rate).clamp(min=1)
        t = torch.where(spent_at_zero <= eps, torch.zeros_like(t), t)
        projected = torch.minimum((size - t).clamp(min=0), room)
        # the rounding of the sums may leave slightly more than eps
        projected = projected * (eps / projected.sum(dim=1, keepdim=True).clamp(min=TINY)).clamp(max=1)
        return delta.sign() * projected.reshape(delta.shape)


def parse_norm(name: str) -> Norm:
    """The norm called `name`; UserError for any other name."""
    for norm in NORMS:
        if norm == name:
            return norm
    raise UserError(f"norm '{name}' is not one of {', '.join(NORMS)}")


def unit_l2(delta: Tensor) -> Tensor:
    """Each example (B, ...) divided by its L2 norm; zero if it is zero."""
    # divided by the largest entry first, because the squares of a confident model's gradient underflow in float32
    delta = delta / _flat_norm(delta, math.inf).clamp(min=TINY)
    return delta / _flat_norm(delta, 2).clamp(min=TINY)


def _flat_norm(delta: Tensor, order: float) -> Tensor:
    """The norm over all but the first axis, kept as (B,1,...)."""
    norms = torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)
    return norms.reshape(-1, *[1] * (delta.dim() - 1))


def _add_towards(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta in float32, rounded towards x, so that rounding never moves a point out of its ball."""
    point = (x.double() + delta).to(x.dtype)
    too_far = (point.double() - x.double()).abs() > delta.abs()
    return torch.where(too_far, torch.nextafter(point, x), point)
