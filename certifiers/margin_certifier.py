"""The base class of certifiers that bound margins: from lower bounds of z_y - z_j to a certificate."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench.core.contracts import Batch, Certificate
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.faithfulness import float64_twin
from certifiers.network import Network
from certifiers.network_certifier import NetworkCertifier
from certifiers.proofs import can_prove
from certifiers.rounding import margin_tolerance


@dataclass(frozen=True, kw_only=True)
class MarginCertifier(NetworkCertifier):
    """Certifies eps if the lower bounds of all margins are positive.

    Positive means larger than the rounding error. Margins that float32 cannot decide are computed again in float64. The
    certificate holds for the network as a function of real numbers: the rounding error of the network's own float32
    forward pass, some 1e-6 of the largest logit, is not included.
    """

    @abstractmethod
    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """Lower bounds of z_y - z_j over the threat model, (B,K), +inf at the label."""

    def bounds(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        """The margins (B,K), and a radius (B,) that is certified even if they are not positive."""
        margins = self.margins(network, x, y, threat)
        return margins, torch.zeros_like(margins[:, 0])

    def proof(self, network: Network, label: int) -> bytes | None:
        """A proof of this label that is valid for every example whose margins are certified; None if there is none."""
        return None

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        network = self.checked_network(model, batch.x, threat)
        margins, radius, error = self.bounds_with_error(model, batch.x, batch.y, threat)
        eps = threat.eps_like(batch.x).flatten().to(margins.dtype)
        by_margins = margins.amin(dim=1) > error
        certified = by_margins | (radius >= eps)
        proofs = self.proofs(network, batch.x, batch.y, threat, by_margins) if can_prove(network) else None
        return Certificate(torch.where(certified, eps, radius), certified, margins, error, proof=proofs)

    def proofs(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel, certified: Tensor) -> Sequence[bytes]:
        """The proofs of the certified examples, b"" for the others."""
        of_label = {label: self.proof(network, label) or b"" for label in set(y.tolist())}
        flags = zip(y.tolist(), certified.tolist(), strict=True)
        return [of_label[label] if is_certified else b"" for label, is_certified in flags]

    def bounds_with_error(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`bounds`, in float64 if float32 does not decide, and the rounding error of the least margin (B,)."""
        network = Network(model, x[:1])
        margins, radius = self.bounds(network, x, y, threat)
        least = margins.amin(dim=1)
        error = margin_tolerance(network, x, threat, least)
        doubtful = (least.abs() <= error).nonzero().squeeze(1)
        if len(doubtful) and x.dtype != torch.float64:
            try:
                twin = float64_twin(model, x)
            except UserError:  # for example a model that converts its input: only float32 is possible
                return margins, radius, error
            refined = self.bounds_with_error(twin, x[doubtful].double(), y[doubtful], threat.of(doubtful))
            for single, double in zip((margins, radius, error), refined, strict=True):
                single[doubtful] = double.to(single.dtype)
        return margins, radius, error


def insert_label(margin: Tensor, others: Tensor) -> Tensor:
    """Margins (B,K-1) over the classes `others` as (B,K), with +inf at the label."""
    margins = margin.new_full((len(margin), margin.shape[1] + 1), torch.inf)
    return margins.scatter(1, others, margin)
