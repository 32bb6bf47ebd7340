"""Leaky-ReLU networks in one batch, on which the inequalities of reflected-loss.txt are tested (section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.losses import cross_entropy, margin, reflected
from bench.core import seeds
from bench.core.threat import ThreatModel
from bench.studies.claims import Floats

CPU = torch.device("cpu")
ITERATIONS = tuple(2**k for k in range(11))  # of the attack in Theorem 3.2
ROUNDING = 1e-9  # of the inequalities, in float64
STRONG = 200  # steps of the attack that replaces the optimal one where there is no closed form


class Networks(nn.Module):
    """N two-layer leaky-ReLU networks, the i-th for the i-th input: x (N,d) -> logits (N,2) = (-f/2, f/2).

    weight (N,m,d), top (N,m), slope (N,).
    """

    def __init__(self, weight: Tensor, top: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.weight, self.top, self.slope = weight, top, slope

    def forward(self, x: Tensor) -> Tensor:
        z = torch.einsum("nmd,nd->nm", self.weight, x)
        hidden = torch.maximum(z, self.slope[:, None] * z)
        f = (self.top * hidden).sum(dim=1)
        return torch.stack([-f / 2, f / 2], dim=1)

    @property
    def norm(self) -> Tensor:
        """|W|_F, (N,)."""
        return self.weight.flatten(1).norm(dim=1)


@dataclass(frozen=True)
class Instances:
    """Networks with kappa sqrt(m) = 1, one example (x, y) and one radius nu for each, and a beta-effective attack."""

    networks: Networks
    x: Tensor
    y: Tensor
    nu: Tensor
    best: Tensor  # y f at the attack

    def rows(self, keep: Tensor) -> Instances:
        nets = Networks(self.networks.weight[keep], self.networks.top[keep], self.networks.slope[keep])
        return Instances(nets, self.x[keep], self.y[keep], self.nu[keep], self.best[keep])


def random_instances(n: int, seed: int) -> Instances:
    """n instances with y f(x) > 0 in which a beta-effective attack exists, beta = 2 nu (1 - alpha) (definition 3.1).

    The units are noisy copies of one direction, and x is near the decision boundary, because hardly any attack is
    effective for independent units and points. nu |W|_F is 0.5 to 20, so that both saturated and unsaturated losses
    occur.
    """
    generator, found = seeds.generator(CPU, seed, "reflected-convergence", "instances"), list[Instances]()
    rand = partial(torch.rand, generator=generator, dtype=torch.float64)
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    while sum(len(part.y) for part in found) < n:
        count, m, d = 2 * n, int(2 ** (1 + 4 * rand(1).item())), int(2 + 9 * rand(1).item())
        slope, nu, y = 0.6 + 0.4 * rand(count), 0.1 + 0.9 * rand(count), (rand(count) < 0.5).long()
        direction = nn.functional.normalize(randn(count, d), dim=1)
        top = (2.0 * (rand(count, m) < 0.5).double() - 1) / math.sqrt(m)
        noise = rand(count)[:, None, None] * randn(count, m, d) / math.sqrt(d)
        weight = torch.sign(top)[:, :, None] * (direction[:, None] + noise)
        size = (0.5 + 19.5 * rand(count)) / nu
        weight = weight * (size / weight.flatten(1).norm(dim=1))[:, None, None]
        x = (2.0 * y - 1)[:, None] * direction * (nu * rand(count))[:, None] + 0.3 * randn(count, d)
        part = Instances(Networks(weight, top, slope), x, y, nu, torch.zeros(count))
        best = lowest_margins(part, alpha=nu / 10, steps=STRONG)
        part = replace(part, best=best)
        effective = best <= -2 * nu * (1 - slope) * part.networks.norm
        found.append(part.rows(effective & (margin(part.networks(x), y) > 0)))
        found[-1] = found[-1].rows(torch.arange(min(len(found[-1].y), n - sum(len(p.y) for p in found[:-1]))))
    return _joined(found)


def _joined(parts: Sequence[Instances]) -> Instances:
    """Instances of different widths and dimensions as one batch: missing units and coordinates are zero."""
    m, d = (max(part.networks.weight.shape[axis] for part in parts) for axis in (1, 2))
    pad = nn.functional.pad
    weight = torch.cat([
        pad(part.networks.weight, (0, d - part.x.shape[1], 0, m - part.networks.top.shape[1])) for part in parts
    ])  # fmt: skip
    top = torch.cat([pad(part.networks.top, (0, m - part.networks.top.shape[1])) for part in parts])
    nets = Networks(weight, top, torch.cat([part.networks.slope for part in parts]))
    x = torch.cat([pad(part.x, (0, d - part.x.shape[1])) for part in parts])
    y, nu, best = (torch.cat([getattr(part, name) for part in parts]) for name in ("y", "nu", "best"))
    return Instances(nets, x, y, nu, best)


def lowest_margins(each: Instances, alpha: Tensor, steps: int) -> Tensor:
    """The lowest y f(delta) of PGD with steps of length alpha (N,), over all iterates."""
    lowest = torch.full_like(each.nu, torch.inf)

    def visit(point: Tensor, logits: Tensor) -> None:
        torch.minimum(lowest, margin(logits, each.y), out=lowest)

    threat = ThreatModel("L2", each.nu, None)
    options = {"threat": threat, "steps": steps, "start": each.x, "loss": reflected, "visit": visit}
    ascend(each.networks, each.x, each.y, alpha=alpha, step="l2", **options)  # type: ignore[arg-type]
    return lowest


def slack(each: Instances, *, factor: float = 1.0, sign: float = 1.0, normalised: bool = False) -> Floats:
    """The right-hand side of Theorem 3.2 minus the left-hand side, (len(ITERATIONS), N): nonnegative if it holds.

    -l'(y f(delta_*)) <= -2 l'(y f(delta_atk)) + 4 nu^2 / (eta T), in the weights W of the proof, where delta_atk is the
    best of the iterates 1 .. T. factor: of the largest step size allowed, 1 / |W|_F^2. sign: -1 descends instead.
    normalised: in the weights W / |W|_F of the statement.
    """
    margins = list[Tensor]()
    eta = factor / each.networks.norm**2
    ascend(
        each.networks, each.x, each.y, threat=ThreatModel("L2", each.nu, None), steps=ITERATIONS[-1], alpha=sign * eta,
        start=each.x, loss=reflected, step="raw", visit=lambda _, logits: margins.append(margin(logits, each.y)),
    )  # fmt: skip
    best = torch.stack(margins).cummin(dim=0).values[[t - 1 for t in ITERATIONS]]
    steps = torch.tensor(ITERATIONS, dtype=torch.float64)[:, None]
    scale = each.networks.norm if normalised else 1.0
    left = torch.sigmoid(-each.best / scale)
    return (2 * torch.sigmoid(-best / scale) + 4 * each.nu**2 / (eta * steps) - left).numpy()


def norm_growth(n: int, seed: int, *, steps: int = 50, factor: float = 1.0) -> Tensor:
    """The largest |W_(t+1)|^2 - |W_1|^2 - 3 eta t over t <= steps, (n,): not positive if Eq. 6 holds.

    Runs n trainings with kappa sqrt(m) = 1 and R + nu = 1 on random points of the ball, since Eq. 6 holds for any
    attack. factor: of the largest step size allowed, 1.
    """
    generator = seeds.generator(CPU, seed, "reflected-convergence", "growth")
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    m, d = 8, 4
    top = torch.sign(randn(n, m)) / math.sqrt(m)
    nets = Networks(randn(n, m, d) * randn(n, 1, 1).abs(), top, torch.rand(n, generator=generator).double())
    first, largest = nets.norm**2, torch.full((n,), -torch.inf, dtype=torch.float64)
    for t in range(1, steps + 1):
        x, y = nn.functional.normalize(randn(n, d), dim=1), (randn(n) > 0).long()
        train_step(nets, x, y, torch.full((n,), factor, dtype=torch.float64))
        largest = torch.maximum(largest, nets.norm**2 - first - 3 * factor * t)
    return largest


def train_step(nets: Networks, x: Tensor, y: Tensor, eta: Tensor) -> None:
    """Line 5 of algorithm 2 for each network: W <- W - eta grad l(y f(x))."""
    weight = nets.weight.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(nets(x), y).sum(), weight)
    nets.weight = weight.detach() - eta[:, None, None] * gradient
