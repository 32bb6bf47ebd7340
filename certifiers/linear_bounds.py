"""Linear bounds of a network's margins (Algorithm 3.1, CROWN), batched over examples and differentiable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.core.threat import ThreatModel
from certifiers.backward import BackwardBound, propagate_backward
from certifiers.input_regions import Region, region_of
from certifiers.interval_bounds import PreActivationBounds, interval_preactivation_bounds
from certifiers.linear_forms import DenseForms, margin_specification
from certifiers.network import Network
from certifiers.patch_forms import identity_forms
from certifiers.relaxations import LinearRelaxation, RelaxationKind, Relaxations
from certifiers.unstable_units import ForwardIntervals, groups, unit_lists

Intermediate = Literal["linear", "ibp"]
# coefficients held at once; 4 MiB stay in a CPU's cache, which is five times faster
BUDGET = {"cpu": 2**20, "cuda": 2**28}


@dataclass(frozen=True)
class LinearBounds:
    """z_y - z_j >= <A, x> + b for every image x of the region; `margin` is the minimum of the right-hand side.

    others (B,K-1): the classes j. A (B,K-1,C,H,W), b and margin (B,K-1). magnitude (B,K-1): the sum of the absolute
    values of what each layer adds to b.
    """

    others: Tensor
    A: Tensor
    b: Tensor
    margin: Tensor
    preactivation: PreActivationBounds
    magnitude: Tensor

    def of(self, rows: Tensor) -> LinearBounds:
        """The bounds of some of the examples."""
        preactivation = {k: (low[rows], high[rows]) for k, (low, high) in self.preactivation.items()}
        others, magnitude = self.others[rows], self.magnitude[rows]
        return LinearBounds(others, self.A[rows], self.b[rows], self.margin[rows], preactivation, magnitude)

    def at(self, x: Tensor) -> Tensor:
        """The linear functions at images x (B,C,H,W): (B,K-1)."""
        return DenseForms(self.A).dot(x) + self.b

    def magnitude_at(self, x: Tensor) -> Tensor:
        """The sum of the absolute values that `at` adds up, at images between -x and x: (B,K-1)."""
        return DenseForms(self.A).absolute().dot(x) + self.magnitude


def linear_bounds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    relaxation: RelaxationKind = "parallel",
    intermediate: Intermediate = "linear",
) -> LinearBounds:
    """Bounds of every margin over the threat model around x (B,C,H,W) with labels y (B,).

    relaxation: of the activations (certifiers/relaxations.py). intermediate: whether pre-activation bounds are also
    linear bounds, or intervals (CROWN-IBP; the "IBP-inspired" bounds of section 3.3.1). Raises UserError, which names
    the layer, if a layer cannot be bounded.
    """
    return BoundedNetwork(Network(model, x[:1]), relaxation, intermediate).bound(region_of(x, threat), y)


class BoundedNetwork:
    """A network with the settings for its linear bounds.

    Pre-activation bounds are computed first, layer by layer. Then each activation is replaced by its linear relaxation,
    and the margins z_y - z_j are propagated backward to the image. Units that intervals prove to be stable keep their
    intervals (certifiers/unstable_units.py). budget: largest number of coefficients held at once.
    """

    def __init__(
        self, network: Network, relaxation: RelaxationKind, intermediate: Intermediate = "linear",
        *, budget: int | None = None,
    ) -> None:  # fmt: skip
        self.network, self.relaxation, self.intermediate = network, relaxation, intermediate
        self.budget = budget or BUDGET.get(network.image.device.type, BUDGET["cpu"])
        self._starts: dict[tuple[int, int, int], BackwardBound] = {}

    @property
    def pulls_units(self) -> bool:
        """Whether the input of some activation is bounded by backward propagation through earlier activations."""
        inputs = (self.network.nodes[k].inputs[0] for k in self.network.activations)
        return self.intermediate == "linear" and not all(map(self.network.is_linear, inputs))

    def bound(self, region: Region, y: Tensor, known: PreActivationBounds | None = None) -> LinearBounds:
        """Bounds of the margins of labels y (B,) over the region. known: see preactivation_bounds."""
        bounds = self.preactivation_bounds(region, known)
        return self.margin_bounds(region, y, bounds, self.relax(bounds))

    def in_chunks(self, region: Region, y: Tensor) -> Iterator[tuple[Tensor, LinearBounds]]:
        """Bound as many examples at a time as the budget of coefficients allows.

        Yields the examples' rows, (b,) int64, and their bounds.
        """
        for rows in torch.arange(len(y), device=y.device).split(self.chunk_size(region, y)):
            yield rows, self.bound(region.of(rows), y[rows])

    def preactivation_bounds(self, region: Region, known: PreActivationBounds | None = None) -> PreActivationBounds:
        """Bounds of the input of each activation.

        known: the same bounds from a call without gradients. Units that they prove stable keep them, because the
        relaxation of a stable unit has no gradient. Bounding twice is then faster than differentiating the bounds of
        all units.
        """
        if self.intermediate == "ibp":
            return interval_preactivation_bounds(self.network, region)
        bounds: PreActivationBounds = {}
        relaxations: dict[int, LinearRelaxation] = {}
        intervals = ForwardIntervals(self.network, region)
        for k in self.network.activations:
            bounds[k] = self.input_bounds(region, k, intervals, relaxations, known)
            relaxations |= self.relax({k: bounds[k]})
            intervals.relax(k, relaxations[k], *bounds[k])
        return bounds

    def input_bounds(
        self, region: Region, k: int, intervals: ForwardIntervals, relaxations: Relaxations,
        known: PreActivationBounds | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Bounds of the input of activation k, (B,*shape) each, given relaxations of the activations before it.

        intervals: of the nodes before it. They are the bounds of the units that they prove stable; otherwise the
        `known` bounds are, if those prove the unit stable.
        """
        shape = self.network.nodes[k].shape
        if self.network.is_linear(self.network.nodes[k].inputs[0]):
            low, high = self.bound_units(region, k, range(shape[0]), {})
        else:
            if known is None:
                low, high, unstable = intervals.of_input(k)
            else:
                (low, high), unstable = known[k], self.network.activation(k).unstable(*known[k])
            low, high, unstable = (each.flatten(1) for each in (low, high, unstable))
            low, high = self._replaced(region, k, (low, high), unstable, relaxations)
        return low.unflatten(1, shape), high.unflatten(1, shape)

    def relax(self, bounds: PreActivationBounds) -> dict[int, LinearRelaxation]:
        """The linear relaxation of each activation within its pre-activation bounds."""
        return {k: self.network.activation(k).relax(*interval, self.relaxation) for k, interval in bounds.items()}

    def margin_bounds(
        self, region: Region, y: Tensor, bounds: PreActivationBounds, relaxations: Relaxations
    ) -> LinearBounds:
        """Bounds of the margins, given pre-activation bounds and relaxations."""
        others, forms = margin_specification(y, self.network.classes, self.network.image)
        bound = propagate_backward(self.network, BackwardBound({self.network.output: forms}, upper=None), relaxations)
        margin, _ = bound.concretize({0: region})
        zero = torch.zeros_like(margin)
        slopes = bound.forms[0].dense().coefficients
        return LinearBounds(others, slopes, zero + bound.lower, margin, bounds, zero + bound.magnitude)

    def bound_units(
        self, region: Region, k: int, units: Tensor | range, relaxations: Relaxations
    ) -> tuple[Tensor, Tensor]:
        """Linear bounds of some units of the input of activation k, (B,T) each.

        units: indices for each example, (B,T) int64, or a range of channels, whose units are all bounded in order.
        relaxations: of the activations before it, for the same examples.
        """
        start = self._start(k, units) if isinstance(units, range) else self._all(k).of_units(units)
        low, high = propagate_backward(self.network, start, relaxations).concretize({0: region})
        if high is None:
            forms = {j: form.negated() for j, form in start.forms.items()}
            negated = BackwardBound(forms, -start.lower, None, start.magnitude)
            high = -propagate_backward(self.network, negated, relaxations).concretize({0: region})[0]
        return low, high

    def chunk_size(self, region: Region, y: Tensor) -> int:
        """How many examples to bound at a time, measured on the margins of one example."""
        region, y = region.of(torch.zeros(1, dtype=torch.int64, device=y.device)), y[:1]
        relaxations = self.relax(interval_preactivation_bounds(self.network, region))
        _, forms = margin_specification(y, self.network.classes, self.network.image)
        start = BackwardBound({self.network.output: forms}, upper=None)
        return max(1, self.budget // max(1, propagate_backward(self.network, start, relaxations).peak))

    def _replaced(
        self, region: Region, k: int, interval: tuple[Tensor, Tensor], unstable: Tensor, relaxations: Relaxations
    ) -> tuple[Tensor, Tensor]:
        """The interval (B,F) of activation k's input, with linear bounds of the `unstable` units (B,F)."""
        capacity = max(1, self.budget // self._peak(k, relaxations))
        order, lows, highs = [], [], []
        for rows, count in groups(unstable.sum(dim=1), unstable.shape[1], capacity):
            low, high = interval[0][rows], interval[1][rows]
            if count:
                own = {j: relaxation.of(rows) for j, relaxation in relaxations.items()}
                pieces, listed = self._pieces(k, unstable[rows], count, capacity)
                found = [self.bound_units(region.of(rows), k, units, own) for units in pieces]
                below, above = (torch.cat(side, dim=1)[listed] for side in zip(*found, strict=True))
                low, high = low.masked_scatter(unstable[rows], below), high.masked_scatter(unstable[rows], above)
            order.append(rows)
            lows.append(low)
            highs.append(high)
        back = torch.cat(order).argsort()
        return torch.cat(lows)[back], torch.cat(highs)[back]

    def _pieces(self, k: int, unstable: Tensor, count: int, capacity: int) -> tuple[Sequence[Tensor | range], Tensor]:
        """Units to bound at a time, and a mask (B,T) of the bounds that belong to `unstable` units (B,F).

        count: the number of units for each example. If it is all of them, they are bounded channel by channel.
        """
        channels, capacity = self.network.nodes[k].shape[0], max(1, capacity // len(unstable))
        if count == unstable.shape[1]:
            step = max(1, capacity * channels // count)
            return [range(at, min(at + step, channels)) for at in range(0, channels, step)], unstable
        units, listed = unit_lists(unstable)
        return units.split(capacity, dim=1), listed

    def _peak(self, k: int, relaxations: Relaxations) -> int:
        """How many coefficients one unit of the input of activation k holds at once."""
        start = self._all(k)  # with its autograd graph, because it is cached
        with torch.no_grad():
            first = torch.zeros((1, 1), dtype=torch.int64, device=self.network.image.device)
            own = {j: relaxation.of(first[0]) for j, relaxation in relaxations.items()}
            return max(1, propagate_backward(self.network, start.of_units(first), own).peak)

    def _all(self, k: int) -> BackwardBound:
        return self._start(k, range(self.network.nodes[k].shape[0]))

    def _start(self, k: int, channels: range) -> BackwardBound:
        """Units of the input of activation k as forms of the activations before it: the same for every example."""
        key = (k, channels.start, channels.stop)
        if key not in self._starts:
            node = self.network.nodes[k]
            forms = identity_forms(node.shape, channels, self.network.image)
            start = BackwardBound({node.inputs[0]: forms})
            self._starts[key] = propagate_backward(self.network, start, {}, until=self.network.activations)
        return self._starts[key]


def intersection(bounds: Sequence[PreActivationBounds]) -> PreActivationBounds:
    """The tightest of several pre-activation bounds."""

    def tightest(k: int) -> tuple[Tensor, Tensor]:
        low, high = zip(*(each[k] for each in bounds), strict=True)
        return torch.stack(low).amax(dim=0), torch.stack(high).amin(dim=0)

    return {k: tightest(k) for k in bounds[0]}
