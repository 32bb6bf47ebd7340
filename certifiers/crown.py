"""Certificates by linear bounds: Fast-Lin, CROWN and CROWN-IBP."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import ThreatModel
from certifiers.input_regions import region_of
from certifiers.linear import Bounder
from certifiers.margin_certifier import MarginCertifier, whole
from certifiers.network import Network


@dataclass(frozen=True, kw_only=True)
class LinearCertifier(MarginCertifier):
    """Certified where the linear bounds of all margins are positive."""

    @abstractmethod
    def bounder(self, network: Network) -> Bounder:
        """How the network is bounded."""

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        chunks = self.bounder(network).in_chunks(region_of(x, threat), y)
        return torch.cat([whole(bounds.margin, bounds.others) for _, bounds in chunks])


@registry.certifier("fast-lin")
@dataclass(frozen=True, kw_only=True)
class FastLin(LinearCertifier):
    """Linear bounds with one slope for both lines of an activation (for ReLU the same as Wong and Kolter's).

    Weng et al., "Towards Fast Computation of Certified Robustness for ReLU Networks" (2018); Wong and Kolter (2018);
    thesis, Algorithm 3.1 with Eq. 3.4 and 3.5.
    """

    def bounder(self, network: Network) -> Bounder:
        return Bounder(network, "parallel")


@registry.certifier("crown")
@dataclass(frozen=True, kw_only=True)
class Crown(LinearCertifier):
    """Linear bounds whose lower line of a ReLU adapts to the interval.

    Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions" (2018).
    relaxation: of sigmoid and tanh, `eq35` two parallel tangents (thesis, Eq. 3.5), `tight` the chord wherever it is a
    bound. Deviation: the tangents' slope is the chord's, not searched for.
    """

    relaxation: Literal["eq35", "tight"] = "eq35"

    def bounder(self, network: Network) -> Bounder:
        return Bounder(network, "tight" if self.relaxation == "tight" else "adaptive")


@registry.certifier("crown-ibp")
@dataclass(frozen=True, kw_only=True)
class CrownIBP(Crown):
    """CROWN for the margins, with interval bounds of what enters the activations.

    Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks" (2020), with beta = 1.
    """

    def bounder(self, network: Network) -> Bounder:
        return Bounder(network, "tight" if self.relaxation == "tight" else "adaptive", "ibp")
