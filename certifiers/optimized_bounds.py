"""Pre-activation bounds with slopes that are optimised for every unstable unit (alpha-CROWN)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certifiers.input_regions import Region
from certifiers.interval_bounds import PreActivationBounds
from certifiers.linear_bounds import BoundedNetwork, intersection
from certifiers.linear_forms import DenseForms
from certifiers.local_relaxation import LocalRelaxation
from certifiers.network import Network
from certifiers.unstable_units import ForwardIntervals

ROWS = 128  # problems at a time


@dataclass(frozen=True)
class OptimizedUnits:
    """The units (m,) of an activation with optimised bounds, and the slopes that give them.

    lower and upper (m,*shape): by activation before it, the slopes of its lower lines for either bound.
    """

    units: Tensor
    lower: dict[int, Tensor]
    upper: dict[int, Tensor]


def optimized_preactivation_bounds(
    network: Network, region: Region, *, steps: int, lr: float
) -> tuple[PreActivationBounds, dict[int, OptimizedUnits]]:
    """Pre-activation bounds of one region (a single row), and which units' slopes were optimised.

    Layer by layer: the tighter of the bounds of fast-lin and crown, given the optimised bounds of earlier layers. Then
    the slopes are optimised for the lower and for the upper bound of each unit that is still unstable, one by one.
    """
    bounds: PreActivationBounds = {}
    optimized: dict[int, OptimizedUnits] = {}
    bounded = [BoundedNetwork(network, "parallel"), BoundedNetwork(network, "adaptive")]
    intervals = ForwardIntervals(network, region)
    for k in network.activations:
        shape = network.nodes[k].shape
        tightest = intersection([
            {k: each.input_bounds(region, k, intervals, each.relax(bounds))} for each in bounded
        ])[k]  # fmt: skip
        low, high = (each.flatten() for each in tightest)
        units = ((low < 0) & (high > 0)).nonzero().squeeze(1)
        source = network.nodes[k].inputs[0]
        if steps and len(units) and not network.is_linear(source):
            local = LocalRelaxation(network, region, bounds)
            sides = []
            for side, sign in ((low, 1.0), (high, -1.0)):
                parameters = []
                for rows in units.split(ROWS):
                    forms = low.new_zeros(len(rows), low.numel())
                    forms[torch.arange(len(rows)), rows] = sign
                    solution = local.maximize(
                        source, DenseForms(forms.view(-1, 1, *shape)), local.start(len(rows)), steps=steps, lr=lr
                    )
                    side[rows] = torch.maximum(sign * side[rows], solution.value) * sign
                    parameters.append(solution.parameters)
                relaxations = local.relaxations(torch.cat(parameters))
                sides.append({j: relaxations[j].lower_slope for j in local.units})
            optimized[k] = OptimizedUnits(units, *sides)
        bounds[k] = (low.view(1, *shape), high.view(1, *shape))
        intervals.relax(k, bounded[-1].relax({k: bounds[k]})[k], *bounds[k])
    return bounds, optimized
