"""The linear relaxation of a network around one image, with its free slopes and multipliers as parameters.

alpha-CROWN (Xu et al. 2021) optimises slopes, beta-CROWN (Wang et al. 2021) also the Lagrange multipliers of splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certifiers.activations import Rectifier, steep
from certifiers.adam import Adam
from certifiers.dual_bounds import DualBound, dual_bound, relaxed_inputs
from certifiers.input_regions import Region
from certifiers.interval_bounds import PreActivationBounds
from certifiers.linear_forms import LinearForms
from certifiers.network import Network
from certifiers.relaxations import LinearRelaxation
from certifiers.rounding import DEVIATIONS

LEVELS = 15  # slopes are multiples of 1/15, which keeps proofs small and hardly loosens the bounds


@dataclass(frozen=True)
class Solution:
    """The best lower bounds (n,) of n problems and the parameters (n,U) that give them.

    For the problems that were optimised to the end: the coefficients of the unstable units' outputs and the units'
    inputs at the solution of the relaxed problem, (n,U) each, and the image of that solution (n,C,H,W).
    """

    value: Tensor
    parameters: Tensor
    coefficients: Tensor
    inputs: Tensor
    image: Tensor

    def of(self, rows: Tensor) -> Solution:
        return Solution(*(each[rows] for each in vars(self).values()))


class LocalRelaxation:
    """The relaxation over one region (a single row) with pre-activation bounds (1,*shape).

    It has one parameter for each unstable unit of a rectifier, U in total, in the order of the activations. If the unit
    is not split, the parameter is the slope of the line through the origin. If it is split, both lines are exact, and
    the parameter is the multiplier beta >= 0 of the split's constraint. Signs (n,U) say which units are split: 1 to
    inputs >= 0, -1 to inputs <= 0, 0 not at all.

    units: the flat indices of the unstable units of each activation; at: their positions among the parameters; low and
    high (U,): their pre-activation bounds.
    """

    def __init__(self, network: Network, region: Region, bounds: PreActivationBounds) -> None:
        self.network, self.region = network, region
        self.lines = {
            k: network.activation(k).relax(*bounds[k], "adaptive" if _has_free_slope(network, k) else "tight")
            for k in bounds
        }
        self.units: dict[int, Tensor] = {}
        self.at: dict[int, slice] = {}
        empty = network.image.new_zeros(0)
        low, high, leak, free = [empty], [empty], [empty], [empty]
        for k, interval in bounds.items():
            layer = network.activation(k)
            if not isinstance(layer, Rectifier):
                continue
            least, most = (each.flatten() for each in interval)
            unit = self.units[k] = layer.unstable(least, most).nonzero().squeeze(1)
            start = sum(map(len, low))
            self.at[k] = slice(start, start + len(unit))
            low.append(least[unit])
            high.append(most[unit])
            each = torch.as_tensor(layer.leak, dtype=least.dtype, device=least.device)
            leak.append(each.expand(interval[0].shape).flatten()[unit])
            free.append(torch.full_like(low[-1], float(_has_free_slope(network, k))))
        self.low, self.high, self.leak, self.free = (torch.cat(each) for each in (low, high, leak, free))

    def locate(self, parameter: int) -> tuple[int, int]:
        """The activation of a parameter, and the flat index of its unit."""
        for k, at in self.at.items():
            if at.start <= parameter < at.stop:
                return k, int(self.units[k][parameter - at.start])
        raise IndexError(parameter)

    def slopes(self, parameters: Tensor, signs: Tensor) -> dict[int, Tensor]:
        """The slopes of the lower lines (n,*shape) of each rectifier; for split units, those of crown."""
        unsplit = torch.lerp(parameters, self.start(len(parameters)), signs.abs())
        relaxations = self.relaxations(unsplit)
        return {k: relaxations[k].lower_slope for k in self.units}

    def transferred(self, parameters: Tensor, signs: Tensor, other: LocalRelaxation) -> tuple[Tensor, Tensor]:
        """The parameters and signs (n,U) of problems for another relaxation of the same network.

        Units that are unstable in this relaxation only are left out; those that are unstable in the other one only get
        the slope of crown.
        """
        all_parameters, all_signs = [], []
        for k, unit in other.units.items():
            size = (len(parameters), self.lines[k].upper_slope[0].numel())
            values, sides, known = parameters.new_zeros(size), signs.new_zeros(size), signs.new_zeros(size[1])
            values[:, self.units[k]], sides[:, self.units[k]] = parameters[:, self.at[k]], signs[:, self.at[k]]
            known[self.units[k]] = 1
            start = other.start(1)[:, other.at[k]].to(values.dtype)
            all_parameters.append(torch.lerp(start.expand_as(values[:, unit]), values[:, unit], known[unit]))
            all_signs.append(sides[:, unit])
        dtype = other.low.dtype
        empty = parameters[:, :0]
        values, sides = (torch.cat([empty, *parts], dim=1).to(dtype) for parts in (all_parameters, all_signs))
        return other.projected(values, sides), sides

    def parameters_of(self, slopes: Mapping[int, Tensor]) -> Tensor:
        """The parameters (n,U) with these slopes (n,*shape) of the rectifiers' lower lines."""
        parts = [slopes[k].flatten(1)[:, unit] for k, unit in self.units.items()]
        return self.projected(torch.cat(parts, dim=1).to(self.low.dtype), None)

    def start(self, n: int) -> Tensor:
        """The slopes of crown for n problems, (n,U)."""
        return torch.where(steep(self.low, self.high), 1.0, self.leak).expand(n, -1).clone()

    def relaxations(self, parameters: Tensor, signs: Tensor | None = None) -> dict[int, LinearRelaxation]:
        """The relaxation of each activation for n problems, given parameters (n,U) and signs (n,U), floats."""
        relaxations = dict(self.lines)
        for k, unit in self.units.items():
            line, values = self.lines[k], parameters[:, self.at[k]]
            if signs is None:
                if line.lower_bias is None:
                    relaxations[k] = replace(line, lower_slope=_with_units(line.lower_slope, unit, values))
                continue
            sign = signs[:, self.at[k]]
            split, leak = sign.abs(), self.leak[self.at[k]]
            exact = leak + (1 - leak) * (sign + 1) / 2
            upper, bias = (each.flatten(1)[:, unit] for each in (line.upper_slope, line.upper_bias))
            lower, lower_bias = values, line.lower_bias
            if lower_bias is not None:
                lower = line.lower_slope.flatten(1)[:, unit].expand_as(values)
                lower_bias = _with_units(lower_bias, unit, lower_bias.flatten(1)[:, unit] * (1 - split))
            relaxations[k] = LinearRelaxation(
                _with_units(line.lower_slope, unit, torch.lerp(lower, exact, split)),
                lower_bias,
                _with_units(line.upper_slope, unit, torch.lerp(upper.expand_as(exact), exact, split)),
                _with_units(line.upper_bias, unit, bias * (1 - split)),
                _with_units(torch.zeros_like(line.upper_bias), unit, -sign * values),
            )
        return relaxations

    def bound(self, node: int, forms: LinearForms, parameters: Tensor, signs: Tensor | None = None) -> Tensor:
        """Lower bounds (n,) of one form (n,1) of a node's output for each problem."""
        bound = dual_bound(self.network, {node: forms}, self.region, self.relaxations(parameters, signs))
        return bound.value - self._rounding_of_multipliers(parameters, signs)

    def maximize(
        self,
        node: int,
        forms: LinearForms,
        parameters: Tensor,
        signs: Tensor | None = None,
        *,
        steps: int,
        lr: float,
        enough: float = torch.inf,
    ) -> Solution:
        """Optimise the lower bounds of one form (n,1) of a node's output for each of n problems.

        By projected Adam, from `parameters`, until a bound is above `enough`. lr: the learning rate of slopes; that of
        multipliers is in units of the mean coefficient of the unstable units, which makes it invariant to the scale of
        the logits. Bounds are those of rounded parameters.
        """
        best = Solution(
            parameters.new_full((len(parameters),), -torch.inf), parameters.clone(), torch.zeros_like(parameters),
            torch.zeros_like(parameters), self.network.image.expand(len(parameters), -1, -1, -1).clone(),
        )  # fmt: skip
        active = torch.arange(len(parameters), device=parameters.device)
        adam, rate = Adam(parameters), torch.full_like(parameters, lr)
        steps = steps if parameters.numel() else 0
        for step in range(steps + 1):
            rounded = self._rounded(parameters, signs)
            relaxations = self.relaxations(rounded, signs)
            bound = dual_bound(self.network, {node: forms}, self.region, relaxations)
            value = bound.value - self._rounding_of_multipliers(rounded, signs)
            better = (value > best.value[active]).nonzero().squeeze(1)
            best.value[active[better]], best.parameters[active[better]] = value[better], rounded[better]
            still = (value <= enough).nonzero().squeeze(1)
            if len(still) == 0:
                break
            c, z = self._gradient_parts(bound, relaxations)
            if step == steps:
                best.coefficients[active], best.inputs[active], best.image[active] = c, z, bound.image
                break
            gradient = c.clamp(min=0) * z * self.free
            if signs is not None:
                split = signs.abs()
                gradient = gradient * (1 - split) - signs * z
                if step == 0:
                    rate = lr * (1 - split + split * c.abs().mean(dim=1, keepdim=True))
            parameters = self.projected(parameters + adam.step(gradient, rate), signs)
            if len(still) < 0.8 * len(active):  # the others are finished
                active, parameters, rate = (each[still] for each in (active, parameters, rate))
                adam.keep(still)
                forms = forms.with_coefficients(forms.coefficients[still])
                signs = None if signs is None else signs[still]
        return best

    def _gradient_parts(self, bound: DualBound, relaxations: Mapping[int, LinearRelaxation]) -> tuple[Tensor, Tensor]:
        """The coefficients of the unstable units' outputs and their inputs, (n,U) each.

        The derivative of the bound is the input times the positive part of the coefficient for a slope, and the input
        times minus the sign of the split for a multiplier.
        """
        inputs, zero = relaxed_inputs(self.network, bound, relaxations), torch.zeros_like(bound.value)[:, None]
        c, z = (
            torch.cat([zero[:, :0], *(
                values[k].flatten(1)[:, unit] if k in values else zero.expand(-1, len(unit))
                for k, unit in self.units.items()
            )], dim=1)
            for values in (bound.coefficients, inputs)
        )  # fmt: skip
        return c, z

    def projected(self, parameters: Tensor, signs: Tensor | None) -> Tensor:
        """With slopes between the leak and 1, and multipliers of at least 0.

        A slope in [leak, 1] may leave this range if it is converted to another dtype.
        """
        ends = self.leak.clamp(max=1), self.leak.clamp(min=1)
        slopes = torch.minimum(torch.maximum(parameters, ends[0]), ends[1])
        return slopes if signs is None else torch.lerp(slopes, parameters.clamp(min=0), signs.abs())

    def _rounded(self, parameters: Tensor, signs: Tensor | None) -> Tensor:
        """The nearest slopes and multipliers that a proof can store."""
        span = torch.where(self.leak < 1, 1 - self.leak, 1)  # slopes of concave units are not free, and are kept
        slopes = self.leak + span * (((parameters - self.leak) / span) * LEVELS).round() / LEVELS
        return slopes if signs is None else torch.lerp(slopes, parameters.half().to(parameters.dtype), signs.abs())

    def _rounding_of_multipliers(self, parameters: Tensor, signs: Tensor | None) -> Tensor | float:
        """How much rounding in the products of multipliers may change a bound, (n,)."""
        if signs is None:
            return 0.0
        reach = torch.maximum(-self.low, self.high)
        return DEVIATIONS * torch.finfo(parameters.dtype).eps / 2 * (parameters * signs.abs()) @ reach


def _with_units(base: Tensor, unit: Tensor, values: Tensor) -> Tensor:
    """base (1,*shape) for n problems, with other values (n,u) at some units."""
    shape = base.shape[1:]
    return base.expand(len(values), *shape).flatten(1).index_copy(1, unit, values).unflatten(1, shape)


def _has_free_slope(network: Network, k: int) -> bool:
    """Whether the lower line of an activation may pass through the origin with any slope between the leak and 1."""
    layer = network.activation(k)
    if not isinstance(layer, Rectifier):
        return False
    return not (isinstance(layer.leak, Tensor) and bool((layer.leak > 1).any()))
