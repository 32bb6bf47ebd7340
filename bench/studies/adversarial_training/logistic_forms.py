"""Adversarial logistic regression in closed form: curvature, collapse to a constant classifier, direction of training.

Thesis, sections 4.2.1 and 4.3.3. Data are arrays x (..., N, M) with labels y (..., N), weights w (..., M) or (K, M).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, nnls
from scipy.special import expit, logsumexp, softmax

from bench.studies.claims import Floats

Labels = npt.NDArray[np.int64]
IMPROVES = 1e-9  # a loss this many nats below log K counts as better than the constant classifier


class Separable(NamedTuple):
    """Points with labels -1 and 1 that w, a unit vector in the dual norm, classifies with margins of at least eps."""

    x: Floats
    y: Floats
    w: Floats
    eps: float


def separable(rng: np.random.Generator) -> Separable:
    """A random data set of 5 to 40 points in 2 to 10 dimensions under a random norm (L1, L2, Linf)."""
    n, dim, dual = int(rng.integers(5, 41)), int(rng.integers(2, 11)), (1, 2, np.inf)[rng.integers(3)]
    w = rng.normal(size=dim)
    w /= np.linalg.norm(w, ord=dual)
    y = rng.choice([-1.0, 1.0], size=n)
    margins = rng.uniform(0.1, 1) + rng.exponential(size=n)
    x = rng.normal(size=(n, dim))
    x += ((y * margins - x @ w) / (w @ w))[:, None] * w
    return Separable(x, y, w, float(margins.min()))


def curvature(x: Floats, y: Floats, w: Floats, eps: float) -> Floats:
    """The Hessian (M, M) of Eq. 4.2, that is Eq. 4.6: the dual norm of w counts as the constant 1."""
    p = expit(y * (x @ w) - eps)
    weights = p * (1 - p) / len(y)
    return (x * weights[:, None]).T @ x


def curvature_with_norm(x: Floats, y: Floats, w: Floats, eps: float) -> Floats:
    """The Hessian of mean log(1 + exp(-y w.x + eps |w|_2)), in which the norm is a function of w."""
    length = float(np.linalg.norm(w))
    unit = w / length
    p = expit(-(y * (x @ w)) + eps * length)
    slopes = eps * unit - y[:, None] * x
    of_norm = eps * (np.eye(len(w)) - np.outer(unit, unit)) / length
    return (slopes * (p * (1 - p) / len(y))[:, None]).T @ slopes + float(p.mean()) * of_norm


def collapse_eps(x: Floats, y: Labels, classes: int) -> float:
    """The eps under Linf from which W = 0 minimizes the adversarial loss of a linear classifier, labels 0 to K - 1.

    The loss is convex, so 0 is a minimum if no directional derivative there is negative. In the direction of weights
    whose rows are u_k below their mean, it is sum_k pi_k (eps |u_k|_1 - u_k.mu_k), with the shares pi_k and the means
    mu_k of the classes. Its minimum is 0 if eps is at least the maximum over pixels d and classes k, l of
    |pi_k mu_kd - pi_l mu_ld| / (pi_k + pi_l); for classes of equal size, half the largest distance of their means.
    """
    shares = np.array([(y == k).mean() for k in range(classes)])
    means = np.stack([x[y == k].mean(axis=0) for k in range(classes)])
    weighted = shares[:, None] * means
    pairs = [
        np.abs(weighted[k] - weighted[j]).max() / (shares[k] + shares[j])
        for k, j in itertools.combinations(range(classes), 2)
    ]
    return float(max(pairs))


def collapse_eps_l2(x: Floats, y: Labels) -> float:
    """`collapse_eps` under L2 for two classes: |mean of (2 y - 1) x|."""
    return float(np.linalg.norm(((2 * y - 1)[:, None] * x).mean(axis=0)))


def least_loss(x: Floats, y: Labels, classes: int, eps: float, rng: np.random.Generator) -> tuple[float, Floats]:
    """The minimal adversarial loss (Linf) of a linear classifier without bias, and its weights (K, M).

    The worst perturbation of a linear classifier is a corner of the cube, so this is a smooth problem with one bound
    s_i >= loss for each point and corner. The solver starts at small random weights.
    """
    (n, dim), size = x.shape, classes * x.shape[1]
    corners = eps * np.array(list(itertools.product((-1.0, 1.0), repeat=dim)))
    points, labels = (x[:, None] + corners).reshape(-1, dim), np.repeat(y, len(corners))
    owner, rows = np.repeat(np.arange(n), len(corners)), np.arange(len(labels))

    def slack(z: Floats) -> Floats:
        logits = points @ z[:size].reshape(classes, dim).T
        return np.asarray(z[size:][owner] - logsumexp(logits, axis=1) + logits[rows, labels])

    def slack_gradient(z: Floats) -> Floats:
        shift = -softmax(points @ z[:size].reshape(classes, dim).T, axis=1)
        shift[rows, labels] += 1
        gradient = np.zeros((len(rows), len(z)))
        gradient[:, :size] = (shift[:, :, None] * points[:, None]).reshape(len(rows), -1)
        gradient[rows, size + owner] = 1
        return gradient

    start = np.concatenate([0.1 * rng.normal(size=size), np.zeros(n)])
    start[size:] = -slack(start).reshape(n, -1).min(axis=1)
    mean = np.concatenate([np.zeros(size), np.full(n, 1 / n)])
    found = minimize(
        lambda z: z @ mean, start, jac=lambda _: mean, method="SLSQP", options={"maxiter": 300, "ftol": 1e-14},
        constraints={"type": "ineq", "fun": slack, "jac": slack_gradient},
    ).x  # fmt: skip
    found[size:] = 0
    return float((-slack(found)).reshape(n, -1).max(axis=1).mean()), found[:size].reshape(classes, dim)


def least_loss_l2(x: Floats, y: Labels, eps: float, rng: np.random.Generator) -> tuple[float, Floats]:
    """`least_loss` under L2 for two classes, whose loss is log(1 + exp(-m + eps |w|)); the weights are (2, M).

    The length |w| is a variable of its own, with the bound s^2 >= |w|^2, so that the problem is smooth.
    """
    signed = (2 * y - 1)[:, None] * x

    def loss(z: Floats) -> float:
        return float(np.logaddexp(0, eps * z[-1] - signed @ z[:-1]).mean())

    def gradient(z: Floats) -> Floats:
        p = expit(eps * z[-1] - signed @ z[:-1])
        return np.append(-(p @ signed), eps * p.sum()) / len(p)

    def search(w: Floats) -> Floats:
        return np.asarray(
            minimize(
                loss, np.append(w, 2 * np.linalg.norm(w)), jac=gradient, method="SLSQP",
                options={"maxiter": 300, "ftol": 1e-14}, bounds=[(None, None)] * len(w) + [(0, None)],
                constraints={
                    "type": "ineq",
                    "fun": lambda z: z[-1] ** 2 - z[:-1] @ z[:-1],
                    "jac": lambda z: np.append(-2 * z[:-1], 2 * z[-1]),
                },
            ).x[:-1]
        )  # fmt: skip

    # the solver may end in 0, where the bound has no gradient, so short steps along the mean are tried too
    short: list[Floats] = [length * signed.mean(axis=0) for length in (1e-3, 1e-2)]
    candidates = [search(0.1 * rng.normal(size=(x.shape[1],))), search(short[1]), *short]
    losses = [loss(np.append(w, np.linalg.norm(w))) for w in candidates]
    w = candidates[int(np.argmin(losses))]
    return min(losses), np.stack([-w, w]) / 2


def collapses(loss: float, classes: int) -> bool:
    """Whether the loss is no better than that of the constant classifier, log K."""
    return loss > math.log(classes) - IMPROVES


def scalar_loss(theta: Floats, eps: float) -> Floats:
    """g_eps of Figure 4.2, x = 1: log(1 + exp(theta x + eps |theta|))."""
    return np.logaddexp(0, theta + eps * np.abs(theta))


def max_margin(x: Floats) -> Floats:
    """The w of least L2 norm with w.x_i >= 1 for all points x (N, M), labels multiplied in; exact (NNLS).

    Lawson and Hanson's problem of the least distance. The points must be separable.
    """
    dim = x.shape[1]
    system, wanted = np.vstack([x.T, np.ones(len(x))]), np.append(np.zeros(dim), 1.0)
    multipliers, _ = nnls(system, wanted, maxiter=100 * len(x))
    residual = system @ multipliers - wanted
    return np.asarray(-residual[:dim] / residual[dim])


def adversarial_max_margin(x: Floats, eps: float) -> Floats:
    """The w of least norm with w.x_i - eps |w| >= 1 (Eq. 4.35), by a general solver; eps below the margin of x."""
    start = max_margin(x)
    start = start / (1 - eps * np.linalg.norm(start)) * 1.5  # a feasible point that is not the solution
    start = start + 0.01 * np.linalg.norm(start) * np.resize([1.0, -1.0], len(start)) / math.sqrt(len(start))
    return np.asarray(
        minimize(
            lambda w: 0.5 * w @ w, start, jac=lambda w: w, method="SLSQP", options={"maxiter": 500, "ftol": 1e-15},
            constraints={
                "type": "ineq",
                "fun": lambda w: x @ w - eps * np.linalg.norm(w) - 1,
                "jac": lambda w: x - eps * w / np.linalg.norm(w),
            },
        ).x
    )  # fmt: skip


def directions(x: Floats, eps: Floats, at: tuple[int, ...]) -> list[Floats]:
    """Gradient descent on Eq. 4.34 with the logistic loss: the weights (S, M) after each number of steps in `at`.

    x (S, N, M): labels multiplied in. The step size is |X|^-2, half of what Theorem 4.4 allows.
    """
    w = np.full((x.shape[0], x.shape[2]), 1e-3)
    step = np.linalg.norm(x, ord=2, axis=(1, 2)) ** -2.0
    found = []
    for t in range(1, max(at) + 1):
        length = np.linalg.norm(w, axis=1)
        p = expit(eps[:, None] * length[:, None] - np.einsum("snm,sm->sn", x, w))
        along = (eps * p.sum(axis=1) / length)[:, None] * w
        w = w - step[:, None] * (along - np.einsum("sn,snm->sm", p, x))
        if t in at:
            found.append(w)
    return found


def cosine(a: Floats, b: Floats) -> Floats:
    """Cosines between the last axes of two arrays."""
    product = (a * b).sum(axis=-1)
    return np.asarray(product / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
