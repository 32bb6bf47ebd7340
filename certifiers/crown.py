"""Certifiers by linear bounds: Fast-Lin, CROWN and CROWN-IBP."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import ThreatModel
from certifiers.input_regions import region_of
from certifiers.linear_bounds import BoundedNetwork, Intermediate
from certifiers.margin_certifier import MarginCertifier, insert_label
from certifiers.network import Network
from certifiers.proofs import Rule, rule_proof
from certifiers.relaxations import RelaxationKind


@dataclass(frozen=True, kw_only=True)
class LinearCertifier(MarginCertifier):
    """Certifies if the linear bounds of all margins are positive."""

    intermediate: ClassVar[Intermediate] = "linear"

    @property
    @abstractmethod
    def kind_of_relaxation(self) -> RelaxationKind: ...

    def proof(self, network: Network, label: int) -> bytes:
        rule: Rule = "parallel" if self.kind_of_relaxation == "parallel" else "adaptive"
        return rule_proof(network, label, rule, linear=self.intermediate == "linear")

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        bounded = BoundedNetwork(network, self.kind_of_relaxation, self.intermediate)
        chunks = bounded.in_chunks(region_of(x, threat), y)
        return torch.cat([insert_label(bounds.margin, bounds.others) for _, bounds in chunks])


@registry.certifier("fast-lin")
@dataclass(frozen=True, kw_only=True)
class FastLin(LinearCertifier):
    """Linear bounds with one slope for both lines of an activation (for ReLU the same as Wong and Kolter's).

    Weng et al., "Towards Fast Computation of Certified Robustness for ReLU Networks" (2018); Wong and Kolter (2018);
    thesis, Algorithm 3.1 with Eq. 3.4 and 3.5.
    """

    kind_of_relaxation = "parallel"


@registry.certifier("crown")
@dataclass(frozen=True, kw_only=True)
class Crown(LinearCertifier):
    """Linear bounds in which a ReLU's lower line adapts to the interval.

    Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions" (2018).
    For sigmoid and tanh, the relaxation `eq35` takes two parallel tangents with the slope of the chord (thesis, Eq.
    3.5), `tight` replaces one of them by the chord wherever it is a bound, and `crown` takes the paper's lines, each
    with its own slope, whose tangent points are found by a search.

    For GELU, SiLU, ELU and softplus, each line has the best slope among those of the chord and of the curve at both
    ends and in the middle.
    """

    relaxation: Literal["eq35", "tight", "crown"] = "eq35"  # lines of sigmoid and tanh

    @property
    def kind_of_relaxation(self) -> RelaxationKind:
        return "adaptive" if self.relaxation == "eq35" else self.relaxation


@registry.certifier("crown-ibp")
@dataclass(frozen=True, kw_only=True)
class CrownIBP(Crown):
    """CROWN for the margins, with pre-activation bounds by interval bound propagation.

    Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks" (2020), with beta = 1.
    """

    intermediate: ClassVar[Intermediate] = "ibp"
