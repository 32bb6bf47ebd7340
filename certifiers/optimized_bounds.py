"""Pre-activation bounds with slopes that are optimised for every unstable unit (alpha-CROWN)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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

    lower and upper: for each earlier activation, the slopes (m,*shape) of its lower lines for that bound.
    """

    units: Tensor
    lower: dict[int, Tensor]
    upper: dict[int, Tensor]


def optimized_preactivation_bounds(
    network: Network, region: Region, *, steps: int, lr: float
) -> tuple[PreActivationBounds, dict[int, OptimizedUnits]]:
    """Pre-activation bounds of one region (a single row), and which units' slopes were optimised.

    Each layer first gets the tighter of the bounds of fast-lin and crown, given the optimised bounds of earlier layers.
    Then the slopes are optimised for the lower and for the upper bound of each unit that is still unstable, separately.
    """
    optimized: dict[int, OptimizedUnits] = {}

    def optimize(k: int, bounds: PreActivationBounds, low: Tensor, high: Tensor) -> None:
        units = ((low < 0) & (high > 0)).nonzero().squeeze(1)  # `unstable` is true everywhere for curves
        source = network.nodes[k].inputs[0]
        if not steps or not len(units) or network.is_linear(source):
            return
        local = LocalRelaxation(network, region, bounds)
        sides = []
        for side, sign in ((low, 1.0), (high, -1.0)):
            solutions = [
                local.maximize(
                    source, _of_units(network, source, rows, sign), local.start(len(rows)), steps=steps, lr=lr
                )
                for rows in units.split(ROWS)
            ]
            _tighten(side, sign, units, torch.cat([solution.value for solution in solutions]))
            relaxations = local.relaxations(torch.cat([solution.parameters for solution in solutions]))
            sides.append(
                {j: relaxations[j].lower_slope.expand(len(units), *network.nodes[j].shape) for j in local.units}
            )
        optimized[k] = OptimizedUnits(units, *sides)

    return _layer_by_layer(network, region, optimize), optimized


def bounds_of_slopes(network: Network, region: Region, optimized: Mapping[int, OptimizedUnits]) -> PreActivationBounds:
    """Recompute the bounds from slopes of `optimized_preactivation_bounds`, in the dtype of this network and region."""

    def tighten(k: int, bounds: PreActivationBounds, low: Tensor, high: Tensor) -> None:
        if k not in optimized:
            return
        source, local = network.nodes[k].inputs[0], LocalRelaxation(network, region, bounds)
        for side, sign, slopes in ((low, 1.0, optimized[k].lower), (high, -1.0, optimized[k].upper)):
            parts = []
            for rows in torch.arange(len(optimized[k].units), device=low.device).split(ROWS):
                forms = _of_units(network, source, optimized[k].units[rows], sign)
                parameters = local.parameters_of({j: each[rows] for j, each in slopes.items()})
                parts.append(local.bound(source, forms, parameters))
            _tighten(side, sign, optimized[k].units, torch.cat(parts))

    return _layer_by_layer(network, region, tighten)


def _layer_by_layer(
    network: Network, region: Region, tighten: Callable[[int, PreActivationBounds, Tensor, Tensor], None]
) -> PreActivationBounds:
    """The tighter of the bounds of fast-lin and crown, layer by layer.

    tighten(k, bounds, low, high) improves low and high (flat, of activation k) in place; bounds: of earlier
    activations.
    """
    bounds: PreActivationBounds = {}
    bounded = [BoundedNetwork(network, "parallel"), BoundedNetwork(network, "adaptive")]
    intervals = ForwardIntervals(network, region)
    for k in network.activations:
        shape = network.nodes[k].shape
        tightest = intersection([
            {k: each.input_bounds(region, k, intervals, each.relax(bounds))} for each in bounded
        ])[k]  # fmt: skip
        low, high = (each.flatten() for each in tightest)
        tighten(k, bounds, low, high)
        bounds[k] = (low.view(1, *shape), high.view(1, *shape))
        intervals.relax(k, bounded[-1].relax({k: bounds[k]})[k], *bounds[k])
    return bounds


def _of_units(network: Network, node: int, units: Tensor, sign: float) -> DenseForms:
    """Units (m,) of a node's output as forms (m,1), times `sign`."""
    shape = network.nodes[node].shape
    forms = network.image.new_zeros(len(units), math.prod(shape))
    forms[torch.arange(len(units), device=units.device), units] = sign
    return DenseForms(forms.view(-1, 1, *shape))


def _tighten(side: Tensor, sign: float, units: Tensor, value: Tensor) -> None:
    """Tighten, in place, lower (sign 1) or upper (-1) bounds of some units; `value` bounds sign times them below."""
    side[units] = torch.maximum(sign * side[units], value) * sign
