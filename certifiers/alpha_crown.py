"""alpha-CROWN: linear bounds with optimised slopes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import ThreatModel
from certifiers.activations import Rectifier
from certifiers.backward import BackwardBound, propagate_backward
from certifiers.input_regions import Region, region_of
from certifiers.linear_bounds import BoundedNetwork, intersection
from certifiers.linear_forms import DenseForms, margin_specification
from certifiers.margin_certifier import MarginCertifier, insert_label
from certifiers.network import Network
from certifiers.relaxations import LinearRelaxation, Relaxations


@registry.certifier("alpha-crown")
@dataclass(frozen=True, kw_only=True)
class AlphaCrown(MarginCertifier):
    """The lower slope of each ReLU is optimised, for every margin that fast-lin and crown do not prove positive.

    Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete
    Verifiers" (2021). It starts from the slopes of the better of the two and keeps the best bound seen, so it is never
    below either. steps: of Adam, with the learning rate lr. Deviations: the pre-activation bounds are the tighter of
    those of fast-lin and crown, and are not optimised; sigmoid, tanh and other curves have no slopes to optimise.
    """

    steps: int = 20
    lr: float = 0.1  # learning rate of Adam for the slopes

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        region = region_of(x, threat)
        bounded = [BoundedNetwork(network, "parallel"), BoundedNetwork(network, "adaptive")]
        if any(not isinstance(network.activation(k), Rectifier) for k in network.activations):
            bounded.append(BoundedNetwork(network, "tight"))
        others, forms = margin_specification(y, network.classes, network.image)
        size, channels = bounded[0].chunk_sizes(region, y)
        margins = []
        for rows in torch.arange(len(y), device=y.device).split(size):
            chunk = region.of(rows)
            preactivation = [each.preactivation_bounds(chunk, channels=channels) for each in bounded]
            margin = torch.stack([
                each.margin_bounds(chunk, y[rows], own, each.relax(own)).margin
                for each, own in zip(bounded, preactivation, strict=True)
            ]).amax(dim=0)  # fmt: skip
            example, target = (margin <= 0).nonzero(as_tuple=True)
            if len(example):
                unproven = DenseForms(forms.coefficients[rows][example, target][:, None])
                tightest = {k: (low[example], high[example]) for k, (low, high) in intersection(preactivation).items()}
                starts = [each.relax(tightest) for each in bounded]
                optimised = self._optimised(network, chunk.of(example), unproven, starts)
                margin[example, target] = torch.maximum(margin[example, target], optimised)
            margins.append(margin)
        return insert_label(torch.cat(margins), others)

    def _optimised(
        self, network: Network, region: Region, forms: DenseForms, starts: list[dict[int, LinearRelaxation]]
    ) -> Tensor:
        """The best lower bounds of N margins (one form per example), (N,)."""

        def lower_bound(relaxations: Relaxations) -> Tensor:
            bound = propagate_backward(network, BackwardBound({network.output: forms}, upper=None), relaxations)
            return bound.concretize({0: region})[0].squeeze(1)

        best, which = torch.stack([lower_bound(relaxations) for relaxations in starts]).max(dim=0)
        fixed, rows = starts[-1], torch.arange(len(which), device=which.device)
        slopes = {
            k: torch.stack([relaxations[k].lower_slope for relaxations in starts])[which, rows].requires_grad_()
            for k in network.activations
            if fixed[k].lower_bias is None
        }
        if not slopes:
            return best
        optimizer = torch.optim.Adam(slopes.values(), lr=self.lr, maximize=True)
        for _ in range(self.steps):
            with torch.enable_grad():
                relaxations = fixed | {k: replace(fixed[k], lower_slope=slope) for k, slope in slopes.items()}
                value = lower_bound(relaxations)
                gradients = torch.autograd.grad(value.sum(), list(slopes.values()))
            best = torch.maximum(best, value.detach())
            for slope, gradient in zip(slopes.values(), gradients, strict=True):
                slope.grad = gradient
            optimizer.step()
            for k, slope in slopes.items():
                activation = network.activation(k)
                assert isinstance(activation, Rectifier)
                activation.clamp_slopes(slope)
        return best
