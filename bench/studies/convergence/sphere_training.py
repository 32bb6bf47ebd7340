"""Adversarial training on the unit sphere, with projections of the weights (Gao et al., 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from attacks.ascent import ascend
from attacks.losses import cross_entropy, margin
from bench.core import seeds
from bench.core.threat import TINY, ThreatModel
from bench.datasets.synthetic import sphere_points
from bench.training.weight_balls import project_layers
from certifiers.linear_bounds import linear_bounds

CPU = torch.device("cpu")


class SphereCap(ThreatModel):
    """The points of the unit sphere within eps of x (B, d), |x| = 1, in L2: the perturbation set of section 3.3."""

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Project onto the cap: normalise, then rotate towards x until the point is within eps."""
        least = (1 - self.eps_like(x).to(x.dtype) ** 2 / 2).clamp(min=-1)  # cosine of the largest angle

        def project(x_adv: Tensor) -> Tensor:
            point = normalize(x_adv, dim=1)
            cosine = (point * x).sum(dim=1, keepdim=True)
            tangent = normalize(point - cosine * x, dim=1, eps=TINY)
            return torch.where(cosine >= least, point, least * x + (1 - least**2).clamp(min=0).sqrt() * tangent)

        return project


@dataclass(frozen=True)
class Data:
    """Points x (n, d) of the sphere, labels y (n,) of 0 and 1, and the caps around them."""

    x: Tensor
    y: Tensor
    cap: SphereCap

    @property
    def ball(self) -> ThreatModel:
        """The L2 ball, which contains the cap."""
        return ThreatModel("L2", self.cap.eps, None)


def sphere_data(n: int, dim: int, delta: float, seed: int) -> Data:
    """n points with disjoint caps and random labels, half of each class."""
    rng = np.random.default_rng(seeds.derive(seed, "convergence", "data", n, dim))
    x = torch.from_numpy(sphere_points(rng, n, dim=dim, distance=2 * delta))
    return Data(x, torch.from_numpy(rng.permutation(np.arange(n) % 2)), SphereCap("L2", delta, None))


def attacked(model: nn.Module, data: Data, *, steps: int, restarts: int = 0, seed: int = 0) -> Tensor:
    """The attack A: PGD in the caps with steps 2.5 delta / steps, from x and random points; the worst final points."""
    project, generator = data.cap.projector(data.x), seeds.generator(CPU, seed, "convergence", "attack")
    assert isinstance(data.cap.eps, float)
    best, highest = data.x, torch.full((len(data.y),), -torch.inf, dtype=data.x.dtype)
    for number in range(restarts + 1):
        noise = data.cap.eps * normalize(torch.randn(data.x.shape, generator=generator, dtype=data.x.dtype), dim=1)
        start = project(data.x + noise) if number else data.x
        alpha = 2.5 * data.cap.eps / steps
        end = ascend(model, data.x, data.y, threat=data.cap, steps=steps, alpha=alpha, start=start)
        with torch.no_grad():
            losses = cross_entropy(model(end), data.y)
        better = losses > highest
        best, highest = torch.where(better[:, None], end, best), torch.maximum(losses, highest)
    return best


@dataclass(frozen=True)
class Trained:
    """surrogate: L_A(W_t) at t = 0 .. T (definition 3.3). moved: the largest |W_h - W_h0|_F at the end."""

    model: nn.Module
    surrogate: list[float]
    moved: float

    @property
    def least(self) -> float:
        """min over t of L_A(W_t), the quantity of Theorems 4.1 and 5.1."""
        return min(self.surrogate)


def train(model: nn.Module, data: Data, *, lr: float, steps: int, radius: float, attack_steps: int) -> Trained:
    """Projected gradient descent on L_A from the model's weights, in place (section 4).

    V = W - lr grad L_A(W), then each layer onto |W_h - W_h0|_F <= radius; an infinite radius is Theorem 5.1's descent
    without projection. attack_steps: of A; 0 for the identity, which is plain training.
    """
    weights = list(model.parameters())
    first = [weight.detach().clone() for weight in weights]
    surrogate = list[float]()
    for step in range(steps + 1):
        x_adv = attacked(model, data, steps=attack_steps) if attack_steps else data.x
        loss = cross_entropy(model(x_adv), data.y).mean()
        surrogate.append(float(loss.detach()))
        if step == steps:
            break
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(lr * gradient)
        if math.isfinite(radius):
            project_layers(weights, first, radius)
    moved = max(float((w.detach() - f).norm()) for w, f in zip(weights, first, strict=True))
    return Trained(model, surrogate, moved)


def robust_loss(model: nn.Module, data: Data, seed: int) -> tuple[float, float]:
    """L_*(W) (definition 3.4) from below, by a strong attack, and from above, by linear bounds over the L2 balls."""
    x_adv = attacked(model, data, steps=40, restarts=4, seed=seed)
    with torch.no_grad():
        below = cross_entropy(model(x_adv), data.y)
        margins = linear_bounds(model, data.x, data.y, data.ball, relaxation="adaptive").margin[:, 0]
    return float(below.mean()), float(softplus(-margins).mean())


def robust_error(model: nn.Module, data: Data, seed: int, *, clean: bool = False) -> float:
    """The share of points that are misclassified or that the strong attack breaks."""
    x = data.x if clean else attacked(model, data, steps=20, restarts=2, seed=seed)
    with torch.no_grad():
        return float((margin(model(x), data.y) <= 0).double().mean())


def tangent_kernel(weight: Tensor, x: Tensor, z: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over the units w_r of <x slope(w_r x), z slope(w_r z)> (definition 5.1), (N, M), for x (N,d) and z (M,d)."""
    return (x @ z.T) * (slope(x @ weight.T) @ slope(z @ weight.T).T) / len(weight)


def relu_kernel(x: Tensor, z: Tensor) -> Tensor:
    """Definition 5.1 for ReLU in closed form: <x, z> (pi - angle) / (2 pi), for points of the unit sphere."""
    cosine = (x @ z.T).clamp(-1, 1)
    return cosine * (math.pi - cosine.arccos()) / (2 * math.pi)


def kernel_fit_error(data: Data, per_point: Sequence[int], tests: int, seed: int) -> list[float]:
    """Assumption 5.2: the largest |f(x') - y| over `tests` perturbations of each point, y = +-1.

    f is the least-norm function of the ReLU kernel's space that interpolates each point and k perturbations of it, for
    each k of `per_point`.
    """
    generator = seeds.generator(CPU, seed, "convergence", "kernel")
    project = data.cap.projector(data.x)

    def perturbed(k: int) -> Tensor:
        assert isinstance(data.cap.eps, float)
        noise = torch.randn((k, *data.x.shape), generator=generator, dtype=data.x.dtype)
        return torch.cat([data.x, *(project(data.x + data.cap.eps * normalize(each, dim=1)) for each in noise)])

    y, found = 2.0 * data.y.to(data.x.dtype) - 1, list[float]()
    test = perturbed(tests)
    for k in per_point:
        points = perturbed(k)
        gram = relu_kernel(points, points) + 1e-9 * torch.eye(len(points), dtype=points.dtype)
        values = relu_kernel(test, points) @ torch.linalg.solve(gram, y.repeat(k + 1))
        found.append(float((values - y.repeat(tests + 1)).abs().max()))
    return found
