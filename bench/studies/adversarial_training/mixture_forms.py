"""The robust error of training on one component of a Gaussian mixture (thesis, Theorem 4.5), and its simulation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from bench.studies.adversarial_training.logistic_forms import max_margin
from bench.studies.claims import Floats

AT_A_TIME = 2000  # simulated points in memory at a time


class Mixture(NamedTuple):
    """Eq. 4.37: x ~ N(y r_i eta, I) with probability p_i; noise q (N, M) and labels y (N,) of the training data."""

    r: Floats
    p: Floats
    eta: Floats
    q: Floats
    y: Floats

    def training_points(self, r: float) -> Floats:
        """X = r y eta^T + Q: the training points of a component."""
        return np.outer(r * self.y, self.eta) + self.q


def random_mixture(rng: np.random.Generator, *, wide: bool = False) -> Mixture:
    """2 to 5 components, 3 to 10 training points, and 2 to 6 dimensions a point; `wide`: M > 10 N log N + N."""
    components, n = int(rng.integers(2, 6)), int(rng.integers(3, 11))
    dim = math.ceil(11 * n * math.log(n) + n) if wide else n * int(rng.integers(2, 7))
    eta = rng.normal(size=dim)
    y = np.where(np.arange(n) % 2, 1.0, -1.0)
    r = np.sort(rng.uniform(0.5, 5, size=components))
    return Mixture(r, rng.dirichlet(np.ones(components)), eta / np.linalg.norm(eta), rng.normal(size=(n, dim)), y)


def interpolation(x: Floats, y: Floats) -> Floats:
    """The w of least norm with w.x_i = y_i: X^T (X X^T)^-1 y."""
    return np.asarray(x.T @ np.linalg.solve(x @ x.T, y))


def alignment(mixture: Mixture, r: float) -> float:
    """g(r_l) of Eq. 4.50, the cosine between eta and the interpolation of component l's points, from s, t and v.

    As printed, g is the positive root of Eq. 4.49, so it is the cosine only if the cosine is positive.
    """
    u, q, eta, y = mixture.q @ mixture.q.T, mixture.q, mixture.eta, mixture.y
    d = q @ eta
    solved = np.linalg.solve(u, np.stack([y, d], axis=1))
    s, t, v = float(y @ solved[:, 0]), float(d @ solved[:, 1]), float(y @ solved[:, 1])
    rest = float(eta @ eta) - t
    c1, c2, c3 = (s * rest + v * v) / s, (s * rest + v * v) / rest, (2 * v * r + 1) / rest
    return math.sqrt(max(0.0, c1 - 1 / (c2 * r * r + c3)))


def robust_error(mixture: Mixture, cosine: float, eps: float) -> float:
    """Eq. 4.38 (Eq. 4.42): sum_i p_i P(Z > r_i cosine - eps), for a classifier at this cosine to eta."""
    return float(mixture.p @ norm.sf(mixture.r * cosine - eps))


def simulated_error(mixture: Mixture, w: Floats, eps: float, n: int, rng: np.random.Generator) -> float:
    """The share of n points of the mixture that an L2 perturbation of length eps makes the classifier w misclassify.

    The perturbation is the worst one, -y eps w / |w|, and it is added to the points.
    """
    wrong = 0
    for count in (*[AT_A_TIME] * (n // AT_A_TIME), n % AT_A_TIME):
        component = rng.choice(len(mixture.r), size=count, p=mixture.p)
        y = rng.choice([-1.0, 1.0], size=count)
        x = rng.normal(size=(count, len(w))) + np.outer(y * mixture.r[component], mixture.eta)
        x -= np.outer(y, eps * w / np.linalg.norm(w))
        wrong += int((y * (x @ w) < 0).sum())
    return wrong / n


def interpolates(mixture: Mixture, r: float) -> bool:
    """Whether the max-margin vector of a component's points is their interpolation of least norm (Lemma 4.4)."""
    signed = mixture.y[:, None] * mixture.training_points(r)
    return bool(np.allclose(signed @ max_margin(signed), 1, atol=1e-6))
