"""SGD on the adversarial loss of a smooth one-dimensional network, and its gradients (thesis, Theorem 4.3).

The network is f(x) = sum_j a_j tanh(w_j x + b_j) of a scalar x, and the loss is log(1 + exp(-y f)). Perturbations are
searched on a grid of the interval, so the adversarial loss and its gradient are exact for the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from bench.studies.claims import Floats

UNITS, POINTS, GRID, BATCH, FLIPPED = 8, 24, 21, 4, 0.1  # FLIPPED: share of wrong labels
SMOOTHNESS = 4.0  # stands for L_theta,theta in the step size, alpha = 1 / (SMOOTHNESS sqrt(T))
EVERY = 50  # steps between two measurements of L_theta,x


@dataclass(frozen=True)
class Descent:
    """For networks trained at one eps: |gradient of L_eps| at each step (nets, T), and L_theta,x on the path (nets,).

    L_theta,x is the largest slope of a gradient between neighbouring grid points, measured at every 50th step. It is
    below the Lipschitz constant of the theorem, which makes the theorem's inequality harder to satisfy.
    """

    eps: float
    gradients: Floats
    slope: Floats

    def share_above(self, gamma: float) -> Floats:
        """The share of steps (nets,) with a gradient longer than gamma eps L_theta,x."""
        return np.asarray((self.gradients > gamma * self.eps * self.slope[:, None]).mean(axis=1))


def descend(eps: float, nets: int, steps: int, rng: np.random.Generator) -> Descent:
    """`steps` of SGD with batches of 4 of 24 points, for `nets` networks and data sets at once."""
    x = rng.uniform(-2, 2, size=(nets, POINTS))
    y = np.sign(x) * np.where(rng.random(x.shape) < FLIPPED, -1, 1)
    theta = rng.normal(size=(3, nets, UNITS))  # a, w, b
    theta[0] /= np.sqrt(UNITS)
    alpha, offsets = 1 / (SMOOTHNESS * np.sqrt(steps)), np.linspace(-eps, eps, GRID)
    norms, slope = np.empty((nets, steps)), np.zeros(nets)
    for t in range(steps):
        grid = x[:, :, None] + offsets
        hidden = np.tanh(theta[1][:, None, None] * grid[..., None] + theta[2][:, None, None])
        margins = y[:, :, None] * (hidden @ theta[0][:, None, :, None]).squeeze(3)
        worst = margins.argmin(axis=2)[:, :, None]
        if t % EVERY == 0:
            every = gradients(theta[:, :, None, None], hidden, grid, margins, y[:, :, None])
            steepest = np.linalg.norm(np.diff(every, axis=3), axis=(0, 4)).max(axis=(1, 2))
            slope = np.maximum(slope, steepest / (offsets[1] - offsets[0]))
        at = np.take_along_axis(hidden, worst[..., None], axis=2).squeeze(2)
        point, margin = (np.take_along_axis(values, worst, axis=2).squeeze(2) for values in (grid, margins))
        each = gradients(theta[:, :, None], at, point, margin, y)
        norms[:, t] = np.linalg.norm(each.mean(axis=2), axis=(0, 2))
        batch = rng.integers(POINTS, size=(nets, BATCH))[None, :, :, None]
        theta = theta - alpha * np.take_along_axis(each, batch, axis=2).mean(axis=2)
    return Descent(eps, norms, slope)


def gradients(theta: Floats, hidden: Floats, x: Floats, margins: Floats, y: Floats) -> Floats:
    """Gradients of the loss by (a, w, b) at points: (3, ..., UNITS), for hidden values (..., UNITS)."""
    outer = -(y * expit(-margins))[..., None]
    inner = outer * theta[0] * (1 - hidden**2)
    return np.stack([outer * hidden, inner * x[..., None], inner])


def change_over_bound(rng: np.random.Generator) -> tuple[float, float]:
    """Proposition 4.2 on random logistic regressions: |change of the gradient of L_eps| over its bound (Eq. 4.11).

    Returns two numbers: with the term 2 eps L_theta,x and without it. Under L2 the worst perturbation is exact, and on
    the images |x'| <= X and weights |theta| <= T the constants are X^2 / 4 and 1 + T X / 4. The second weights are near
    the negative first ones, short, so that the perturbations change most and the weights least.
    """
    n, dim, eps = int(rng.integers(1, 20)), int(rng.integers(2, 10)), float(rng.uniform(0.05, 1))
    x, y = rng.normal(size=(n, dim)), rng.choice([-1.0, 1.0], size=n)
    first = rng.normal(size=dim) * 10 ** rng.uniform(-4, 0.5)
    second = -first + rng.normal(size=dim) * np.linalg.norm(first) * rng.uniform(0, 1)

    def gradient(theta: Floats) -> Floats:
        worst = x - eps * np.outer(y, theta) / np.linalg.norm(theta)
        return np.asarray(-(expit(-y * (worst @ theta)) * y) @ worst / n)

    moved = float(np.linalg.norm(first - second))
    longest = float(np.linalg.norm(x, axis=1).max()) + eps
    largest = max(float(np.linalg.norm(theta)) for theta in (first, second))
    smooth, scattered = longest**2 / 4 * moved, 2 * eps * (1 + largest * longest / 4)
    change = float(np.linalg.norm(gradient(first) - gradient(second)))
    return change / (smooth + scattered), change / smooth


def printed_bound(gamma: float) -> float:
    """Eq. 4.17."""
    return 4 / (gamma**2 - 2 * gamma + 4)


def derived_bound(gamma: float) -> float:
    """The bound from E[h] <= 0 and Eq. 4.24: -2 (1 - P) + (gamma^2 / 2 - 2 gamma) P < 0, so P < 4 / (gamma - 2)^2."""
    return min(1.0, 4 / (gamma - 2) ** 2) if gamma > 2 else 1.0
