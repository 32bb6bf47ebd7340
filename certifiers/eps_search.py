"""The largest eps that can be certified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import UserError
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel
from certifiers.crown import FastLin
from certifiers.margin_certifier import MarginCertifier
from certifiers.network import NetworkCertifier, in_float64
from certifiers.pec import PEC

ENOUGH = 1e-6  # the authors', too: with all but so little of eps proven, the upper end stays where it is
METHODS: dict[str, type[MarginCertifier]] = {"pec": PEC, "bisection": FastLin}


@dataclass(frozen=True)
class Search:
    """Where each search ended: proven up to `low`, not proven at `high`, after so many `bounds`, (B,) each."""

    low: Tensor
    high: Tensor
    bounds: Tensor


@registry.certifier("eps-search")
@dataclass(frozen=True, kw_only=True)
class EpsSearch(NetworkCertifier):
    """The largest eps that can be certified, by bisection.

    Thesis, Algorithm 3.5. method: `pec` raises the lower end to whatever the envelope proves; `bisection` is the plain
    search of Fast-Lin and CROWN. It starts from [0, high] and ends when the interval is no longer than `precision`.
    Only examples that are classified right are searched. eps itself is tried as well where the search ends around it.
    """

    norms = ("Linf", "L2")

    method: Literal["pec", "bisection"] = "pec"
    high: Length = OfEps(4)
    precision: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision <= 0 or in_units(self.high, 1.0) <= 0:
            raise UserError(f"precision {self.precision} and high {self.high} must be positive")

    def certify(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Certificate:
        eps = threat.eps_like(batch.x).flatten().expand(len(batch))
        low = self.search(model, batch.x, batch.y, threat).low
        near = ((low > 0) & (low < eps) & (low + self.precision >= eps)).nonzero().squeeze(1)
        if len(near):
            low[near] = torch.maximum(low[near], self._proven(model, batch.x[near], batch.y[near], threat, eps[near]))
        return Certificate(low.to(batch.x.dtype), low >= eps)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Search:
        """Algorithm 3.5 for each image x (B,C,H,W) with label y (B,); threat.eps is only the unit of `high`.

        In float64: near the largest eps, what rounding takes off a radius would cost one more bound.
        """
        right = model(x).argmax(dim=1) == y
        model, x = in_float64(model), x.double()
        low = torch.zeros_like(x[:, 0, 0, 0])
        high = low + in_units(self.high, threat.eps_like(x).flatten())
        bounds = torch.zeros_like(y)
        while len(rows := (right & (high - low > self.precision)).nonzero().squeeze(1)):
            eps = (low[rows] + high[rows]) / 2
            proven = self._proven(model, x[rows], y[rows], threat, eps)
            bounds[rows] += 1
            low[rows] = torch.maximum(low[rows], proven)
            high[rows] = torch.where(eps - ENOUGH > proven, eps, high[rows])
        return Search(low, high, bounds)

    def _proven(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, eps: Tensor) -> Tensor:
        """The radius that is certified with bounds over an eps of each image's own, (b,)."""
        threat = ThreatModel(threat.norm, eps, threat.box)
        margins, radius, error = METHODS[self.method]().checked(model, x, y, threat)
        return torch.where(margins.amin(dim=1) > error, eps, radius)
