"""The largest eps that can be certified."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import UserError
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel
from certifiers.crown import FastLin
from certifiers.faithfulness import float64_twin
from certifiers.margin_certifier import MarginCertifier
from certifiers.network_certifier import NetworkCertifier
from certifiers.pec import PEC

ENOUGH = 1e-6  # as in the authors' code: if all of eps but this is certified, the upper end of the search stays
METHODS: dict[str, type[MarginCertifier]] = {"pec": PEC, "bisection": FastLin, "newton": FastLin}
START = 0.25  # share of the interval at which Newton's method starts
BESIDE = 0.4  # of the precision: distance of the next eps beyond Newton's root, so that the interval closes around it
HALVING = 3  # Newton's method halves the interval at every third bound, so that it terminates for any function


@dataclass(frozen=True)
class SearchInterval:
    """The final interval of each search, (B,): certified at `low`; at `high` not certified, or not tried.

    bounds: the number of bounds computed.
    """

    low: Tensor
    high: Tensor
    bounds: Tensor


@registry.certifier("eps-search")
@dataclass(frozen=True, kw_only=True)
class EpsSearch(NetworkCertifier):
    """The largest eps that can be certified, by bisection or Newton's method.

    Thesis, Algorithm 3.5. The method `pec` raises the lower end to the radius that the envelope proves; `bisection` is
    the plain search of Fast-Lin and CROWN; `newton` follows the derivative of fast-lin's least margin with respect to
    eps, as Wong and Kolter (2018, appendix) do, and halves the interval at every third bound. The search starts from
    [0, high] and ends when the interval is no longer than `precision`. Only correctly classified examples are searched.
    If the final interval contains eps, eps itself is tried too.
    """

    norms = ("Linf", "L2")

    method: Literal["pec", "bisection", "newton"] = "pec"  # how the next eps to try is chosen
    high: Length = OfEps(4)  # upper end of the search
    precision: float = 1e-4  # length of the interval at which the search ends

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision <= 0 or in_units(self.high, 1.0) <= 0:
            raise UserError(f"eps-search: precision {self.precision} and high {self.high} must be positive")

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        self.checked_network(model, batch.x, ThreatModel(threat.norm, self._high(threat, batch.x), threat.box))
        eps = threat.eps_like(batch.x).flatten().expand(len(batch))
        low = self.search(model, batch.x, batch.y, threat).low
        near = ((low > 0) & (low < eps) & (low + self.precision >= eps)).nonzero().squeeze(1)
        if len(near):
            radius, _ = self._certified(model, batch.x[near], batch.y[near], threat, eps[near])
            low[near] = torch.maximum(low[near], radius)
        return Certificate(low.to(batch.x.dtype), low >= eps)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> SearchInterval:
        """Algorithm 3.5 for each image x (B,C,H,W) with label y (B,); threat.eps is only the unit of `high`.

        In float64: near the largest eps, the rounding error of a float32 radius would cost one more bound.
        """
        correct = model(x).argmax(dim=1) == y
        model, x = float64_twin(model, x), x.double()
        low = torch.zeros_like(x[:, 0, 0, 0])
        high = low + self._high(threat, x)
        bounds = torch.zeros_like(y)
        tried = low + (high - low) * (START if self.method == "newton" else 0.5)
        while len(rows := (correct & (high - low > self.precision)).nonzero().squeeze(1)):
            eps = tried[rows]
            radius, root = self._certified(model, x[rows], y[rows], threat, eps)
            bounds[rows] += 1
            low[rows] = torch.maximum(low[rows], radius)
            high[rows] = torch.where(eps - ENOUGH > radius, eps, high[rows])
            beyond = root + torch.where(low[rows] >= eps, 1, -1) * BESIDE * self.precision
            useful = (beyond > low[rows]) & (beyond < high[rows]) & (bounds[rows] % HALVING != 0)
            tried[rows] = torch.where(useful, beyond, (low[rows] + high[rows]) / 2)
        return SearchInterval(low, high, bounds)

    def _high(self, threat: ThreatModel, x: Tensor) -> Tensor:
        """The largest eps that is tried, (B,) or (1,)."""
        high = torch.as_tensor(in_units(self.high, threat.eps_like(x)), dtype=torch.float64, device=x.device)
        return high.flatten()

    def _certified(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The radius (b,) certified by bounds over one eps (b,) per image, and Newton's root (b,), or NaN."""
        differentiated = self.method == "newton"
        with torch.set_grad_enabled(differentiated):
            eps = eps.detach().requires_grad_(differentiated)
            own = ThreatModel(threat.norm, eps, threat.box)
            margins, radius, error = METHODS[self.method]().bounds_with_error(model, x, y, own)
            least, root = margins.amin(dim=1), torch.full_like(eps, torch.nan)
            if differentiated:
                (slope,) = torch.autograd.grad(least.sum(), eps)
                root = (eps - (least - error) / slope).detach()
        return torch.where(least > error, eps, radius).detach(), root
