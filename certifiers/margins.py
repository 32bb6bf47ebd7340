"""What all certifiers that bound margins share: from lower bounds of z_y - z_j to a certificate."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.contracts import Batch, Certificate, Certifier
from bench.core.threat import ThreatModel
from certifiers.intervals import tolerance
from certifiers.network import Network
from certifiers.regions import Region, region_of


@dataclass(frozen=True, kw_only=True)
class MarginCertifier(Certifier):
    """Certifies all of eps where the lower bounds of all margins are positive, and nothing elsewhere.

    Positive means above what rounding may have added. What float32 leaves in doubt is bounded again in float64. The
    certificate is one of the network as a function of real numbers: what its own float32 pass rounds off, some 1e-6 of
    the largest logit, is not in it.
    """

    @abstractmethod
    def margins(self, network: Network, region: Region, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_j over the region, (B,K), +inf at the label."""

    def check_fits(self, model: nn.Module, shape: tuple[int, ...], threat: ThreatModel) -> None:
        super().check_fits(model, shape, threat)
        weight = next(model.parameters(), torch.zeros(()))
        Network(model, torch.zeros((1, *shape), device=weight.device, dtype=weight.dtype))

    def certify(
        self,
        model: nn.Module,
        batch: Batch,
        threat: ThreatModel,
        *,
        generator: torch.Generator,
        hint: Tensor | None = None,
    ) -> Certificate:
        margins, error = self.checked(model, batch.x, batch.y, threat)
        certified = margins.amin(dim=1) > error
        eps = threat.eps_like(batch.x).flatten().to(margins.dtype)
        return Certificate(torch.where(certified, eps, 0.0), certified, margins, error)

    def checked(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        """The margins, and what rounding may have done to the least of each example (B,); float64 where it matters."""
        network, region = Network(model, x[:1]), region_of(x, threat)
        margins = self.margins(network, region, y)
        least = margins.amin(dim=1)
        error = tolerance(network, region, threat.box, least)
        doubtful = (least.abs() <= error).nonzero().squeeze(1)
        if len(doubtful) and x.dtype != torch.float64:
            exact = copy.deepcopy(model).double()
            again, error64 = self.checked(exact, x[doubtful].double(), y[doubtful], threat.of(doubtful))
            # a bound that is positive by less than float32 can show must stay above its tolerance
            margins, error = (
                margins.index_put((doubtful,), again.float()),
                error.index_put((doubtful,), error64.float()),
            )
        return margins, error


def whole(margin: Tensor, others: Tensor) -> Tensor:
    """Margins (B,K-1) over the classes `others` as (B,K), with +inf at the label."""
    found = margin.new_full((len(margin), margin.shape[1] + 1), torch.inf)
    return found.scatter(1, others, margin)
