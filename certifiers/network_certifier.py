"""The base class of certifiers that need the layers of a model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.contracts import Certifier
from bench.core.errors import UserError
from bench.core.network_format import Description
from bench.core.threat import ThreatModel
from certifiers.faithfulness import check_computes
from certifiers.network import Network
from certifiers.network_description import described_network


@dataclass(frozen=True, kw_only=True)
class NetworkCertifier(Certifier):
    """A certifier that needs the model's layers."""

    def check_network(self, network: Network) -> None:
        """UserError if this certifier does not support one of the layers."""

    def describe(self, model: nn.Module, image: Tensor) -> Description | None:
        return described_network(model, image)

    def checked_network(self, model: nn.Module, x: Tensor, threat: ThreatModel) -> Network:
        """The layers of a model; UserError if they do not compute what it does around images x (B,C,H,W)."""
        network = Network(model, x[:1])
        self.check_network(network)
        check_computes(network, model, x, threat)
        return network

    def check_fits(self, model: nn.Module, shape: tuple[int, ...], threat: ThreatModel) -> None:
        super().check_fits(model, shape, threat)
        weight = next(model.parameters(), torch.zeros(()))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.check_network(Network(model, torch.zeros((1, *shape), device=weight.device, dtype=dtype)))


def check_piecewise_linear(network: Network, certifier: str) -> None:
    """UserError names the first activation that is not piecewise linear. certifier: its name in the message."""
    if network.curved:
        k = network.curved[0]
        raise UserError(
            f"{network.nodes[k].name} is not supported by {certifier}, because {network.activation(k).name} is not "
            "piecewise linear; use alpha-crown"
        )
