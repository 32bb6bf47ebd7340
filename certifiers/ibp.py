"""Interval bound propagation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import ThreatModel
from certifiers.input_regions import region_of
from certifiers.interval_bounds import interval_margins
from certifiers.margin_certifier import MarginCertifier
from certifiers.network import Network
from certifiers.proofs import interval_proof

CHUNK = 500  # examples at a time on a CPU, so that the intervals stay in its cache


@registry.certifier("ibp")
@dataclass(frozen=True, kw_only=True)
class IBP(MarginCertifier):
    """Interval bounds, layer by layer; the last layer is merged into the margins.

    Gowal et al., "On the Effectiveness of Interval Bound Propagation" (2018); thesis, Algorithm 3.2. The cost is about
    two forward passes. Under L2 and L1 the first layer is bounded over the ball, as in Algorithm 3.2.
    """

    def proof(self, network: Network, label: int) -> bytes:
        return interval_proof(network, label)

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        size = CHUNK if x.device.type == "cpu" else len(x)
        chunks = [slice(at, at + size) for at in range(0, len(x), size)]
        return torch.cat([interval_margins(network, region_of(x[rows], threat.of(rows)), y[rows]) for rows in chunks])
