"""The loss over perturbations of one input of a two-layer softplus network (Deng et al., 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from attacks.ascent import ascend
from bench.core.threat import ThreatModel
from bench.studies.claims import network, output

LossName = Literal["quadratic", "cross entropy"]


@dataclass(frozen=True)
class Landscape:
    """L(delta) = loss(y, f(x + delta)) on the L2 ball of radius eps around x (1, d).

    label: 0 or 1, for y = -1 or 1. The attack maximizes L. (The paper minimizes -L, so its local minima are the local
    maxima here, and vice versa.)
    """

    model: nn.Module
    x: Tensor
    eps: float
    label: int
    loss: LossName = "quadratic"

    @property
    def dim(self) -> int:
        return self.x.shape[1]

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel("L2", self.eps, None)

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss (B,) of logits (B,2), in the form that `ascend` needs."""
        if self.loss == "quadratic":
            return (2.0 * y - 1 - (logits[:, 1] - logits[:, 0])) ** 2
        return cross_entropy(logits, y, reduction="none")

    def values(self, delta: Tensor) -> Tensor:
        """L at perturbations (N, d): (N,)."""
        return self.losses(self.model(self.x + delta), self.labels(len(delta)))

    def labels(self, n: int) -> Tensor:
        return torch.full((n,), self.label, dtype=torch.int64)

    def gradients(self, delta: Tensor) -> Tensor:
        """The gradient of L, (N, d)."""
        delta = delta.detach().requires_grad_()
        return torch.autograd.grad(self.values(delta).sum(), delta)[0]

    def output_gradients(self, delta: Tensor) -> Tensor:
        """The gradient of f, (N, d)."""
        delta = delta.detach().requires_grad_()
        return torch.autograd.grad(output(self.model, self.x + delta).sum(), delta)[0]

    def starts(self, n: int, generator: torch.Generator) -> Tensor:
        """Perturbations (n, d), uniform in the ball."""
        return self.threat.random_delta(self.x.expand(n, -1), generator)

    def follow(
        self, delta: Tensor, *, eta: float, steps: int, sign: float = 1.0, step: Literal["raw", "l2"] = "raw"
    ) -> list[Tensor]:
        """The perturbations (N, d) at the `steps` + 1 points of PGD; sign -1 descends."""
        x = self.x.expand(len(delta), -1)
        points, labels = list[Tensor](), self.labels(len(delta))
        last = ascend(
            self.model, x, labels, threat=self.threat, steps=steps, alpha=sign * eta, start=x + delta, loss=self.losses,
            step=step, visit=lambda point, _: points.append((point - x).detach()),
        )  # fmt: skip
        return [*points, (last - x).detach()]

    def optima(self, delta: Tensor, *, sign: float = 1.0, rounds: int = 10, steps: int = 20) -> Tensor:
        """Local optima of sign * L: the ends of PGD with normalised, shrinking steps from perturbations (N, d)."""
        for number in range(rounds):
            delta = self.follow(delta, eta=self.eps * 0.3 * 0.5**number, steps=steps, sign=sign, step="l2")[-1]
        return delta

    def tangent(self, delta: Tensor) -> Tensor:
        """Gamma of points on the sphere, (N, d): the gradient of L without its radial part (section 4)."""
        gradient, normal = self.gradients(delta), normalize(delta, dim=1)
        return gradient - (gradient * normal).sum(dim=1, keepdim=True) * normal

    def curvature(self, delta: Tensor) -> Tensor:
        """Xi of points on the sphere, (N, d, d): the Hessian of L - lambda* (|delta|^2 - eps^2) (section 4).

        lambda* = <grad L, delta> / (2 eps^2) is the multiplier that makes the gradient of the Lagrangian smallest.
        """
        multiplier = (self.gradients(delta) * delta).sum(dim=1) / (2 * self.eps**2)
        delta = delta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.values(delta).sum(), delta, create_graph=True)
        rows = [torch.autograd.grad(gradient[:, k].sum(), delta, retain_graph=True)[0] for k in range(self.dim)]
        return torch.stack(rows, dim=1) - 2 * multiplier[:, None, None] * torch.eye(self.dim, dtype=delta.dtype)


def landscape(dim: int, width: int, scale: float, ratio: float, seed: int, loss: LossName = "quadratic") -> Landscape:
    """A random network with Xavier's scales, and an input of length `scale` with eps = ratio * scale (section 5.1).

    The label is the class that the network does not predict, so that |y - f| > 1 at x (setting 3 of section 2).
    """
    spec = f"two-layer:width={width}:activation=softplus:std={dim**-0.5!r}"
    model = network(spec, dim, seed, "first-order", dim, width)
    generator = torch.Generator().manual_seed(seed)
    x = scale * normalize(torch.randn(1, dim, generator=generator, dtype=torch.float64), dim=1)
    with torch.no_grad():
        label = int(output(model, x) <= 0)
    return Landscape(model, x, ratio * scale, label, loss)


def maxima_on_circle(space: Landscape, n: int = 20_000) -> Tensor:
    """The local maxima (k, 2) of a landscape of two dimensions on the circle of radius eps, among n angles."""
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    points = space.eps * torch.stack([angle.cos(), angle.sin()], dim=1)
    with torch.no_grad():
        level = space.values(points)
    return points[(level > level.roll(1)) & (level >= level.roll(-1))]
