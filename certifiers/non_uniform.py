"""The certified box of the largest volume: one eps per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.eps_search import EpsSearch
from certifiers.input_regions import Box
from certifiers.linear_bounds import BoundedNetwork
from certifiers.network import Network
from certifiers.network_certifier import NetworkCertifier
from certifiers.rounding import rounding_error

LARGEST = 1.0  # eps of a uniform box at which the search begins
SMALLEST = 1e-3  # of its initial eps: a box that shrinks to this size is discarded
AT_ONCE = 64  # examples
HALVINGS = 20  # of the interval of multiples of a direction


@registry.certifier("non-uniform")
@dataclass(frozen=True, kw_only=True)
class NonUniform(NetworkCertifier):
    """The certified box around an image that has the largest volume: one eps per pixel.

    Liu, Tomioka, Cevher, "On Certifying Non-uniform Bounds against Adversarial Attacks" (2019); thesis, Algorithm 3.3,
    with the bounds of Algorithm 3.1. The radius is the largest eps that is certified uniformly for all pixels. As in
    the paper, the range of pixels is ignored: beyond it a pixel's eps would grow without limit.

    Deviation: the mean of log eps instead of the sum, which only changes the unit of the multipliers.
    """

    norms = ("Linf",)

    steps: int = 20  # outer steps, each with `inner` steps of Adam and one update of the multipliers
    inner: int = 10  # steps of Adam in each outer step
    lr: float = 0.01  # learning rate of Adam
    clip: float = 0.1  # largest norm of the gradient of Adam
    rho: float = 0.1  # weight of the penalty in the first outer step
    growth: float = 1.2  # factor of rho from one outer step to the next
    margin: float = 1e-3  # delta, a lower limit of every margin
    shrink: float = 0.99  # eta, the factor by which the eps shrink at the end until the margins reach delta

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inner", "lr", "clip", "rho", "margin"):
            if getattr(self, name) <= 0:
                raise UserError(f"non-uniform: {name} is {getattr(self, name)}; it must be positive")
        if not 0 < self.shrink < 1 <= self.growth:
            raise UserError(f"non-uniform: shrink {self.shrink} must be in (0, 1) and growth {self.growth} at least 1")

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        self.checked_network(model, batch.x, ThreatModel("Linf", LARGEST, box=None))
        eps = threat.eps_like(batch.x)
        boxes, uniform = self.boxes(model, batch.x, batch.y)
        radius = torch.maximum(boxes.flatten(1).amin(dim=1), uniform)
        return Certificate(radius, radius >= eps.flatten())

    def boxes(self, model: nn.Module, x: Tensor, y: Tensor, direction: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The eps of each pixel (B,C,H,W), and the largest uniform eps that the same bounds certify (B,).

        Both are 0 for an image that is misclassified or cannot be certified at all. direction (C,H,W): positive; the
        search starts at its largest certified multiple instead of at the uniform box. Boxes of one model are nearly
        collinear, so the mean direction of some of them is a good choice (thesis, section 3.2.2).
        """
        threat = ThreatModel("Linf", LARGEST, box=None)
        uniform = EpsSearch(method="bisection", high=LARGEST).search(model, x, y, threat).low.to(x.dtype)
        boxes = torch.zeros_like(x)
        network = Network(model, x[:1])
        certified = (uniform > 0).nonzero().squeeze(1)
        for rows in certified.split(AT_ONCE) if len(certified) else ():
            margins = BoxMargins(network, x[rows], y[rows])
            same = uniform[rows].reshape(-1, 1, 1, 1).expand_as(margins.x)
            start = same if direction is None else self.multiple(margins, direction, uniform[rows])
            boxes[rows] = larger(self.shrunk(margins, self.largest(margins, start)), same)
        return boxes, uniform

    def multiple(self, margins: BoxMargins, direction: Tensor, uniform: Tensor) -> Tensor:
        """The largest multiple of `direction` with certified margins, by bisection: (B,C,H,W).

        uniform (B,): a certified uniform eps, so that the smallest multiple is certified too.
        """
        low = (uniform / direction.amax()).reshape(-1, 1, 1, 1)
        high = low + LARGEST / direction.amin()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fails = margins.too_small(middle * direction, self.margin).reshape(-1, 1, 1, 1)
            low, high = torch.where(fails, low, middle), torch.where(fails, middle, high)
        return low * direction

    def largest(self, margins: BoxMargins, start: Tensor) -> Tensor:
        """The loop of Algorithm 3.3, from the eps `start` (B,C,H,W); its result may be a little too large."""
        zeta = start.sqrt().requires_grad_()  # line 2; eps = zeta^2
        optimizer = torch.optim.Adam([zeta], lr=self.lr)
        rho, multipliers = self.rho, torch.zeros_like(margins.over(start))
        for _ in range(self.steps):  # line 3
            for _ in range(self.inner):  # line 5, with line 4's slack
                with torch.enable_grad():
                    eps = zeta.square()
                    spare = margins.over(eps) - self.margin  # d
                    slack = (spare + multipliers / rho).clamp(min=0)  # c
                    volume = eps.log().flatten(1).mean(dim=1)
                    gap = spare - slack
                    loss = -volume + (multipliers * gap + rho / 2 * gap.square()).sum(dim=1)
                    (gradient,) = torch.autograd.grad(loss.sum(), zeta)
                norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).reshape(-1, 1, 1, 1)
                zeta.grad = gradient * (self.clip / norm.clamp(min=self.clip))
                optimizer.step()
                zeta.abs_().clamp_(min=1e-4)
            spare = margins.over(zeta.detach().square()) - self.margin
            multipliers = multipliers + rho * (spare - (spare + multipliers / rho).clamp(min=0))  # line 6
            rho *= self.growth
        return zeta.detach().square()

    def shrunk(self, margins: BoxMargins, eps: Tensor) -> Tensor:
        """Lines 8 to 10: eps, shrunk until every margin is at least delta and the rounding error; 0 if none is."""
        least = eps * SMALLEST
        while len(rows := margins.too_small(eps, self.margin).nonzero().squeeze(1)):
            shrunk = self.shrink * eps[rows]
            eps = eps.index_put((rows,), torch.where(shrunk > least[rows], shrunk, 0.0))
        return eps


class BoxMargins:
    """The margins of images x (B,C,H,W) with labels y (B,) over boxes around them."""

    def __init__(self, network: Network, x: Tensor, y: Tensor) -> None:
        self.bounded, self.x, self.y = BoundedNetwork(network, "parallel"), x, y

    def over(self, eps: Tensor) -> Tensor:
        """Lower bounds of the margins with an eps for each pixel (B,C,H,W): (B,K-1). Differentiable."""
        return self.bounded.bound(Box(self.x, eps), self.y).margin

    def too_small(self, eps: Tensor, margin: float) -> Tensor:
        """Whether a box is not empty and a margin over it is below `margin` or its rounding error, (B,) bool."""
        error = rounding_error(self.bounded.network, Box(self.x, eps)).clamp(min=margin)
        return (self.over(eps).amin(dim=1) < error) & (eps > 0).flatten(1).any(dim=1)


def larger(a: Tensor, b: Tensor) -> Tensor:
    """For each example the eps (B,C,H,W) of the larger volume."""
    a_is_larger = a.log().flatten(1).sum(dim=1) > b.log().flatten(1).sum(dim=1)
    return torch.where(a_is_larger.reshape(-1, 1, 1, 1), a, b)
