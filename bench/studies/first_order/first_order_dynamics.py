"""How PGD moves in a landscape: escapes, steps until near an optimum, shrinking steps, curvature at the optima."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.studies.claims import Floats
from bench.studies.first_order.first_order_landscape import Landscape

CPU = torch.device("cpu")
AWAY = 0.01  # of eps: distance from the local minimum at which an escape starts
GAIN = 0.9  # share of the way from the local minimum to the local maximum that counts as escaped
LONGEST, AT_A_TIME = 20_000, 100  # largest number of steps of a trajectory, and steps between two checks
ON_SPHERE = 1 - 1e-6  # of eps
NEAR = 0.9  # cosine between gradient and normal near an optimum (phi in Lemma 4.4)
FLOOR = 1e-18  # of eps^2: smaller squared distances are rounding error


def escape(space: Landscape, generator: torch.Generator, eta: float) -> tuple[Tensor, float]:
    """PGD with raw steps eta from near a local minimum of the loss: (points (k, d), steps until escaped).

    The local minimum is the end of a descent from a random point. The number of steps is infinite if it exceeds
    LONGEST.
    """
    lowest = space.optima(space.starts(1, generator), sign=-1)
    start = space.threat.project(lowest + AWAY * space.starts(1, generator), torch.zeros_like(lowest))
    highest = space.optima(start)
    with torch.no_grad():
        low, high = space.values(lowest), space.values(highest)
    points = [start]
    for _ in range(LONGEST // AT_A_TIME):
        points += space.follow(points[-1], eta=eta, steps=AT_A_TIME)[1:]
        with torch.no_grad():
            gain = (space.values(torch.cat(points[-AT_A_TIME:])) - low) / (high - low)
        if (gain >= GAIN).any():
            steps = len(points) - AT_A_TIME + int((gain >= GAIN).double().argmax())
            return torch.cat(points[: steps + 1]), float(steps)
    return torch.cat(points), math.inf


def steps_until_near(space: Landscape, delta: Tensor, eta: float) -> tuple[float, int, Tensor]:
    """PGD with raw steps eta from perturbations (N, d): (mean number of steps, trajectories that went wrong, ends).

    Counts the steps until a point on the sphere with |Gamma| <= sqrt(eta) at which the gradient points outwards;
    infinite if they exceed LONGEST. A trajectory goes wrong if it enters the set Delta^- of Lemma 4.5, the points with
    |Gamma| <= sqrt(eta) at which the gradient points inwards.
    """
    first, wrong = torch.full((len(delta),), torch.inf), torch.zeros(len(delta), dtype=torch.bool)
    for done in range(0, LONGEST, AT_A_TIME):
        path = torch.stack(space.follow(delta, eta=eta, steps=AT_A_TIME))
        flat = path.flatten(0, 1)
        small = (flat.norm(dim=1) >= ON_SPHERE * space.eps) & (space.tangent(flat).norm(dim=1) <= eta**0.5)
        outwards = (space.gradients(flat) * flat).sum(dim=1) > 0
        near, bad = (small & outwards).reshape(path.shape[:2]), (small & ~outwards).reshape(path.shape[:2])
        wrong |= bad.any(dim=0)
        new = near.any(dim=0) & first.isinf()
        first[new] = done + near[:, new].double().argmax(dim=0).float()
        delta = path[-1]
        if first.isfinite().all():
            break
    return float(first.mean()), int(wrong.sum()), delta


def shrinking_rate(space: Landscape, delta: Tensor, eta: float, steps: int) -> float:
    """The exponent of z + s in the squared distance D_s to the optimum, for PGD from near it (1, d) (Corollary 3.1).

    The step sizes are 2 / (beta (s + z)), where beta is the smallest curvature at the optimum, and z is chosen so that
    the first step size is eta.
    """
    optimum = space.optima(delta)
    beta = float(torch.linalg.eigvalsh(space.curvature(optimum)[0]).abs().min())
    z = max(1, math.ceil(2 / (beta * eta)))
    distances: list[float] = []
    for s in range(steps):
        distances.append(float(((delta - optimum) ** 2).sum()))
        delta = space.follow(delta, eta=2 / (beta * (s + z)), steps=1)[-1]
    squared: Floats = np.array(distances)
    kept = squared > FLOOR * space.eps**2
    at = np.log(z + np.arange(steps))[kept]
    centred = at - at.mean()
    return float(centred @ np.log(squared[kept]) / (centred @ centred))


class Signs(NamedTuple):
    """Xi near optima: the number of points at which it is not definite, and the largest |Gamma| at an optimum."""

    wrong: int
    points: int
    residual: float


def curvature_signs(space: Landscape, generator: torch.Generator) -> Signs:
    """Xi should be negative definite near a local maximum on the sphere and positive definite near a local minimum."""
    wrong = points = 0
    residual = 0.0
    for sign in (1.0, -1.0):
        optima = space.optima(space.starts(5, generator), sign=sign)
        residual = max(residual, float(space.tangent(optima).norm(dim=1).max()))
        noise = torch.randn(len(optima), 20, space.dim, generator=generator, dtype=torch.float64) / space.dim
        around = space.eps * normalize(normalize(optima, dim=1)[:, None] + noise, dim=2)
        delta = torch.cat([optima, around.flatten(0, 1)])
        cosine = (normalize(space.gradients(delta), dim=1) * normalize(delta, dim=1)).sum(dim=1)
        near = delta[sign * cosine >= NEAR]
        wrong += int((sign * torch.linalg.eigvalsh(space.curvature(near)) >= 0).any(dim=1).sum())
        points += len(near)
    return Signs(wrong, points, residual)
