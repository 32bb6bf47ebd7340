"""alpha-CROWN: linear bounds with optimised slopes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import ThreatModel
from certifiers.crown import Crown, FastLin
from certifiers.input_regions import region_of
from certifiers.margin_certifier import MarginCertifier
from certifiers.network import Network
from certifiers.split_search import SplitSearch


@registry.certifier("alpha-crown")
@dataclass(frozen=True, kw_only=True)
class AlphaCrown(MarginCertifier):
    """The slopes of lower lines are optimised, for the examples that fast-lin and crown do not certify.

    Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete
    Verifiers" (2021). First the slopes for the margins are optimised, starting from those of crown. If a margin is
    still not positive, the slopes for the pre-activation bounds of every unstable unit are optimised, and then those
    for the margins again. The result is the best bound, so no margin is below that of fast-lin or crown.

    Deviations: the slopes of a pre-activation bound are optimised for this bound, not for the margins; sigmoid, tanh
    and other curves have no slopes to optimise.
    """

    steps: int = 20  # Adam steps for a margin
    intermediate_steps: int = 10  # Adam steps for a pre-activation bound; 0: none
    lr: float = 0.2  # learning rate of Adam for the slopes

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        linear = [FastLin(), Crown()]
        if network.curved:
            linear.append(Crown(relaxation="tight"))
        margins = torch.stack([each.margins(network, x, y, threat) for each in linear]).amax(dim=0)
        for i in (margins <= 0).any(dim=1).nonzero().squeeze(1).tolist():
            optimized = self._search(network, x, y, threat, i).margins()
            margins[i] = torch.maximum(margins[i], optimized)
        return margins

    def proofs(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel, certified: Tensor) -> Sequence[bytes]:
        searches = [self._search(network, x, y, threat, i) if certified[i] else None for i in range(len(y))]
        return [b"" if search is None or search.has_open() else search.proof() for search in searches]

    def _search(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel, i: int) -> SplitSearch:
        """The bounds of one example, without splits."""
        row = torch.tensor([i], device=x.device)
        search = SplitSearch(network, region_of(x[row], threat.of(row)), int(y[i]))
        search.bound_root(steps=self.steps, intermediate_steps=self.intermediate_steps, lr=self.lr)
        return search
