"""The adversarial loss as a function of all weights: Hessian eigenvalues, steps along directions, Bezier curves.

The Hessian is taken at fixed perturbations, consistent with the gradient of the maximum where it is smooth (Danskin).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters

from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.threat import ThreatModel
from bench.studies.adversarial_training.adversarial_runs import CHUNK, CPU, attacked
from bench.studies.claims import Floats


def weights_of(model: nn.Module) -> Tensor:
    """All weights as one vector (P,), a copy."""
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])  # in any memory layout


def with_weights(model: nn.Module, theta: Tensor) -> nn.Module:
    """A copy of the model, in eval mode, with other weights (P,)."""
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        vector_to_parameters(theta, other.parameters())
    return other


class Spectrum(NamedTuple):
    """The largest eigenvalues (k,) of a Hessian, the largest first, and their unit eigenvectors (P, k)."""

    values: Floats
    vectors: Floats


def hessian_product(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Floats], Floats]:
    """v (P,) -> H v, where H is the Hessian of the mean cross entropy at x, y in all weights; in float64."""
    model = copy.deepcopy(model).double().eval()
    parameters = list(model.parameters())
    loss = cross_entropy(model(x.double()), y)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, create_graph=True)])

    def product(v: Floats) -> Floats:
        along = gradient @ torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)).reshape(-1)
        parts = torch.autograd.grad(along, parameters, retain_graph=True, allow_unused=True)
        full = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, parameters, strict=True)]
        return np.asarray(torch.cat([part.flatten() for part in full]).numpy())

    return product


def spectrum(model: nn.Module, x: Tensor, y: Tensor, k: int, seed: int) -> Spectrum:
    """The k largest eigenvalues of the Hessian, by the Lanczos method on Hessian-vector products."""
    size = sum(parameter.numel() for parameter in model.parameters())
    operator = LinearOperator((size, size), matvec=hessian_product(model, x, y), dtype=np.float64)
    start = np.random.default_rng(seeds.derive(seed, "lanczos")).normal(size=size)
    values, vectors = eigsh(operator, k=k, which="LA", v0=start, tol=1e-6)
    order = np.argsort(-values)
    return Spectrum(values[order], vectors[:, order])


def robust_loss(model: nn.Module, batch: Batch, threat: ThreatModel | None, seed: int) -> float:
    """The mean cross entropy under PGD against this model."""
    x = attacked(model, batch, threat, seed)
    with torch.no_grad():
        return float(cross_entropy(model(x), batch.y))


def landscape(
    model: nn.Module, batch: Batch, threat: ThreatModel | None, vectors: Floats, steps: Sequence[float]
) -> Floats:
    """Figure 4.6: the robust loss at theta + a_1 v_1 + a_2 v_2, (steps, steps), for vectors (P, 2)."""
    theta, (first, second) = weights_of(model), torch.from_numpy(vectors.T[:2].copy()).float()
    return np.array([
        [robust_loss(with_weights(model, theta + a * first + b * second), batch, threat, 0) for b in steps]
        for a in steps
    ])  # fmt: skip


def perturbation_cosine(
    model: nn.Module, batch: Batch, threat: ThreatModel, direction: Tensor, length: float, runs: int
) -> float:
    """Figure 4.7: the mean cosine of the perturbations at theta + a v and theta - a v, over runs with different starts.

    Both perturbations of a run start at the same random point.
    """
    theta, values = weights_of(model), []
    for run in range(runs):
        ends = [with_weights(model, theta + sign * length * direction) for sign in (1, -1)]
        first, second = ((attacked(each, batch, threat, run) - batch.x).flatten(1) for each in ends)
        values.append(float(cosine_similarity(first, second, dim=1).mean()))
    return float(np.mean(values))


class Curve:
    """Eq. 4.28: a Bezier curve between the weights of two models, with trained control points."""

    def __init__(self, start: nn.Module, end: nn.Module, order: int) -> None:
        self.model = copy.deepcopy(start)
        self.ends = weights_of(start), weights_of(end)
        shares = torch.linspace(0, 1, order + 1)[1:-1, None]
        self.middle = ((1 - shares) * self.ends[0] + shares * self.ends[1]).requires_grad_()

    @property
    def order(self) -> int:
        return len(self.middle) + 1

    def point(self, t: float) -> Tensor:
        """The weights (P,) at t in [0, 1]."""
        points = [self.ends[0], *self.middle, self.ends[1]]
        n = self.order
        shares = [math.comb(n, i) * (1 - t) ** (n - i) * t**i for i in range(n + 1)]
        return torch.stack([share * point for share, point in zip(shares, points, strict=True)]).sum(dim=0)

    def train(
        self,
        batches: Callable[[], Iterator[Batch]],
        threat: ThreatModel | None,
        *,
        steps: int,
        attack_steps: int,
        lr: float,
        seed: int,
    ) -> None:
        """Minimise the robust loss by Adam, at a random t for each batch; `batches` yields the batches of an epoch."""
        optimizer = torch.optim.Adam([self.middle], lr=lr)
        rng = np.random.default_rng(seeds.derive(seed, "bezier"))
        names = [name for name, _ in self.model.named_parameters()]
        shapes = [parameter.shape for parameter in self.model.parameters()]
        sizes = [shape.numel() for shape in shapes]
        done = 0
        while done < steps:
            for batch in batches():
                theta = self.point(float(rng.random()))
                model = with_weights(self.model, theta.detach()).train()
                x = attacked(model, batch, threat, done, attack_steps)
                parts = theta.split(sizes)
                weights = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
                optimizer.zero_grad()
                cross_entropy(functional_call(model, weights, (x,)), batch.y).backward()
                optimizer.step()
                done += 1
                if done == steps:
                    break

    def at(self, t: float, images: Tensor) -> nn.Module:
        """The model at t, in eval mode, with batch norm statistics estimated on images (N,C,H,W)."""
        with torch.no_grad():
            model = with_weights(self.model, self.point(t))
        estimate_batch_norm(model, images)
        return model


def estimate_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Set the running means and variances of all batch norms to those of images (N,C,H,W), by one cumulative pass."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    model.train()
    with torch.no_grad():
        for part in images.split(CHUNK):
            model(part)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def random_direction(size: int, seed: int) -> Tensor:
    """A random unit vector (size,)."""
    v = torch.randn(size, generator=seeds.generator(CPU, seed, "direction"))
    return v / v.norm()
