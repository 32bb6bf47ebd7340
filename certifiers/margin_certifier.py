"""What all certifiers that bound margins share: from lower bounds of z_y - z_j to a certificate."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.contracts import Batch, Certificate
from bench.core.threat import ThreatModel
from certifiers.intervals import tolerance
from certifiers.network import Network, NetworkCertifier, in_float64


@dataclass(frozen=True, kw_only=True)
class MarginCertifier(NetworkCertifier):
    """Certifies all of eps where the lower bounds of all margins are positive, and nothing elsewhere.

    Positive means above what rounding may have added. What float32 leaves in doubt is bounded again in float64. The
    certificate is one of the network as a function of real numbers: what its own float32 pass rounds off, some 1e-6 of
    the largest logit, is not in it.
    """

    @abstractmethod
    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """Lower bounds of z_y - z_j over the threat model, (B,K), +inf at the label."""

    def bounds(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        """The margins (B,K), and a radius (B,) that is proven where they are not positive."""
        margins = self.margins(network, x, y, threat)
        return margins, torch.zeros_like(margins[:, 0])

    def certify(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Certificate:
        margins, radius, error = self.checked(model, batch.x, batch.y, threat)
        eps = threat.eps_like(batch.x).flatten().to(margins.dtype)
        certified = (margins.amin(dim=1) > error) | (radius >= eps)
        return Certificate(torch.where(certified, eps, radius), certified, margins, error)

    def checked(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
        """`bounds`, in float64 where it matters, and what rounding may have done to the least margin (B,)."""
        network = Network(model, x[:1])
        margins, radius = self.bounds(network, x, y, threat)
        least = margins.amin(dim=1)
        error = tolerance(network, x, threat, least)
        doubtful = (least.abs() <= error).nonzero().squeeze(1)
        if len(doubtful) and x.dtype != torch.float64:
            exact = in_float64(model)
            again = self.checked(exact, x[doubtful].double(), y[doubtful], threat.of(doubtful))
            for mine, better in zip((margins, radius, error), again, strict=True):
                mine[doubtful] = better.to(mine.dtype)
        return margins, radius, error


def whole(margin: Tensor, others: Tensor) -> Tensor:
    """Margins (B,K-1) over the classes `others` as (B,K), with +inf at the label."""
    found = margin.new_full((len(margin), margin.shape[1] + 1), torch.inf)
    return found.scatter(1, others, margin)
