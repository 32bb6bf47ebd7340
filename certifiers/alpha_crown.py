"""Linear bounds with optimised slopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import ThreatModel
from certifiers.backward import Pulled, pull
from certifiers.input_regions import Region, region_of
from certifiers.linear import Bounder, intersection
from certifiers.linear_forms import Dense, differences
from certifiers.margin_certifier import MarginCertifier, whole
from certifiers.network import Network
from certifiers.relaxations import Lines


@registry.certifier("alpha-crown")
@dataclass(frozen=True, kw_only=True)
class AlphaCrown(MarginCertifier):
    """The lower slope of each ReLU is optimised, for every margin that fast-lin and crown leave open.

    Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete
    Verifiers" (2021). It starts from the slopes of the better of the two and keeps the best bound seen, so it is never
    below either. steps: of Adam, with the learning rate lr. Deviations: what enters the activations has the bounds of
    fast-lin and crown, whichever is tighter, and is not optimised; sigmoid and tanh have no slopes to optimise.
    """

    steps: int = 20
    lr: float = 0.1

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        region = region_of(x, threat)
        bounders = [Bounder(network, "parallel"), Bounder(network, "adaptive")]
        if any(network.activation(k).name != "relu" for k in network.activations):
            bounders.append(Bounder(network, "tight"))
        others, rows = differences(y, network.classes, network.image)
        size, part = bounders[0].chunk(region, y)
        found = []
        for some in torch.arange(len(y), device=y.device).split(size):
            here = region.of(some)
            limits = [each.limits(here, part=part) for each in bounders]
            bounds = [
                each.margins(here, y[some], own, each.lines(own)) for each, own in zip(bounders, limits, strict=True)
            ]
            margin = torch.stack([each.margin for each in bounds]).amax(dim=0)
            example, target = (margin <= 0).nonzero(as_tuple=True)
            if len(example):
                wanted = Dense(rows.coefficients[some][example, target][:, None])
                between = {k: (low[example], high[example]) for k, (low, high) in intersection(limits).items()}
                starts = [each.lines(between) for each in bounders]
                better = self._optimised(network, here.of(example), wanted, starts)
                margin[example, target] = torch.maximum(margin[example, target], better)
            found.append(margin)
        return whole(torch.cat(found), others)

    def _optimised(self, network: Network, region: Region, wanted: Dense, starts: list[dict[int, Lines]]) -> Tensor:
        """The best bounds of N margins (one row of `wanted` each), (N,)."""

        def bound(lines: Mapping[int, Lines]) -> Tensor:
            pulled = pull(network, Pulled({network.output: wanted}, up=None), lines)
            return pulled.reach({0: region})[0].squeeze(1)

        best, which = torch.stack([bound(lines) for lines in starts]).max(dim=0)
        fixed = starts[-1]
        slopes = {
            k: _chosen([lines[k].low_slope for lines in starts], which).requires_grad_()
            for k in network.activations
            if fixed[k].low_shift is None
        }
        if not slopes:
            return best
        optimizer = torch.optim.Adam(slopes.values(), lr=self.lr, maximize=True)
        for _ in range(self.steps):
            with torch.enable_grad():
                value = bound(fixed | {k: replace(fixed[k], low_slope=slope) for k, slope in slopes.items()})
                gradients = torch.autograd.grad(value.sum(), list(slopes.values()))
            best = torch.maximum(best, value.detach())
            for slope, gradient in zip(slopes.values(), gradients, strict=True):
                slope.grad = gradient
            optimizer.step()
            for k, slope in slopes.items():
                slope.clamp_(*network.activation(k).slope)
        return best


def _chosen(slopes: list[Tensor], which: Tensor) -> Tensor:
    """Row n of slopes[which[n]], for each n."""
    return torch.stack(slopes)[which, torch.arange(len(which), device=which.device)]
