"""Linear bounds of a network's margins (Algorithm 3.1, CROWN), batched over examples and differentiable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.core.threat import ThreatModel
from certifiers.backward import BackwardBound, propagate_backward
from certifiers.input_regions import Region, region_of
from certifiers.interval_bounds import PreActivationBounds, interval_preactivation_bounds
from certifiers.linear_forms import DenseForms, identity_forms, margin_specification
from certifiers.network import Network
from certifiers.relaxations import LinearRelaxation, RelaxationKind, Relaxations

Intermediate = Literal["linear", "ibp"]
Channels = Mapping[int, int]  # by activation node: how many channels (or units) of its input to bound at a time
# coefficients held at once; 4 MiB stay in a CPU's cache, which is five times faster
BUDGET = {"cpu": 2**20, "cuda": 2**28}


@dataclass(frozen=True)
class LinearBounds:
    """z_y - z_j >= <A, x> + b for every image x of the region; `margin` is the least value of the right-hand side.

    others (B,K-1): the classes j. A (B,K-1,C,H,W), b and margin (B,K-1). magnitude (B,K-1): the sum of the absolute
    values that were added up to b.
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

    relaxation: of the activations (certifiers/relaxations.py). intermediate: whether pre-activation bounds are linear
    bounds too, or intervals (CROWN-IBP; the "IBP-inspired" bounds of section 3.3.1). UserError names a layer that
    cannot be bounded.
    """
    return BoundedNetwork(Network(model, x[:1]), relaxation, intermediate).bound(region_of(x, threat), y)


class BoundedNetwork:
    """A network and how to bound it.

    Pre-activation bounds are computed first, layer by layer. Then each activation is replaced by its linear relaxation,
    and the margins z_y - z_j are propagated backward to the image.
    """

    def __init__(self, network: Network, relaxation: RelaxationKind, intermediate: Intermediate = "linear") -> None:
        self.network, self.relaxation, self.intermediate = network, relaxation, intermediate
        self._starts: dict[tuple[int, int, int], BackwardBound] = {}

    def bound(self, region: Region, y: Tensor, *, channels: Channels | None = None) -> LinearBounds:
        """Bounds of the margins of labels y (B,) over the region."""
        bounds = self.preactivation_bounds(region, channels=channels)
        return self.margin_bounds(region, y, bounds, self.relax(bounds))

    def in_chunks(self, region: Region, y: Tensor, budget: int | None = None) -> Iterator[tuple[Tensor, LinearBounds]]:
        """Bounds of so many examples at a time that the coefficients held at once stay within `budget`.

        Yields the examples' rows, (b,) int64, and their bounds.
        """
        size, channels = self.chunk_sizes(region, y, budget)
        for rows in torch.arange(len(y), device=y.device).split(size):
            yield rows, self.bound(region.of(rows), y[rows], channels=channels)

    def preactivation_bounds(self, region: Region, *, channels: Channels | None = None) -> PreActivationBounds:
        """Bounds of the input of each activation, of all channels at a time if `channels` is None."""
        if self.intermediate == "ibp":
            return interval_preactivation_bounds(self.network, region)
        bounds: PreActivationBounds = {}
        relaxations: dict[int, LinearRelaxation] = {}
        for k in self.network.activations:
            shape = self.network.nodes[k].shape
            step = shape[0] if channels is None else channels[k]
            parts = [
                self.bound_units(region, k, range(at, min(at + step, shape[0])), relaxations)
                for at in range(0, shape[0], step)
            ]
            low, high = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
            bounds[k] = (low.unflatten(1, shape), high.unflatten(1, shape))
            relaxations |= self.relax({k: bounds[k]})
        return bounds

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

    def chunk_sizes(self, region: Region, y: Tensor, budget: int | None = None) -> tuple[int, Channels]:
        """How many examples, and how many channels, to bound at a time: measured on one channel of one example."""
        budget = budget or BUDGET.get(y.device.type, BUDGET["cpu"])
        region, y = region.of(torch.zeros(1, dtype=torch.int64, device=y.device)), y[:1]
        relaxations = self.relax(interval_preactivation_bounds(self.network, region))
        _, forms = margin_specification(y, self.network.classes, self.network.image)
        start = BackwardBound({self.network.output: forms}, upper=None)
        peak = propagate_backward(self.network, start, relaxations).peak
        peaks: dict[int, int] = {}
        if self.intermediate == "linear":
            for k in self.network.activations:
                peaks[k] = propagate_backward(self.network, self._start(k, range(1)), relaxations).peak
        largest = max(1, peak, *(each * self.network.nodes[k].shape[0] for k, each in peaks.items()))
        size = max(1, budget // largest)
        return size, {k: max(1, budget // (size * max(1, each))) for k, each in peaks.items()}

    def bound_units(self, region: Region, k: int, channels: range, relaxations: Relaxations) -> tuple[Tensor, Tensor]:
        """Bounds of some channels (or units) of the input of activation k, (B,T) each."""
        start = self._start(k, channels)
        low, high = propagate_backward(self.network, start, relaxations).concretize({0: region})
        if high is None:
            forms = {j: form.negated() for j, form in start.forms.items()}
            negated = BackwardBound(forms, -start.lower, None, start.magnitude)
            high = -propagate_backward(self.network, negated, relaxations).concretize({0: region})[0]
        return low, high

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
