"""Linear bounds of a network's margins (Algorithm 3.1), batched over examples and differentiable.

The bounds of what enters each activation come first, layer by layer; then each activation is replaced by two lines, and
the rows z_y - z_j are pulled back to the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.core.threat import ThreatModel
from certifiers.backward import Pulled, pull
from certifiers.input_regions import Region, region_of
from certifiers.intervals import Limits, interval_limits
from certifiers.linear_forms import Dense, differences, units
from certifiers.network import Network
from certifiers.relaxations import Lines, Relaxation, relax

Intermediate = Literal["linear", "ibp"]
BUDGET = {
    "cpu": 2**20,
    "cuda": 2**28,
}  # coefficients held at once: 4 MiB stay in a CPU's cache, which is five times faster


@dataclass(frozen=True)
class LinearBounds:
    """z_y - z_j >= <A, x> + b for every image x of the region; `margin` is the least that this allows.

    others (B,K-1): the classes j. A (B,K-1,C,H,W), b and margin (B,K-1). limits: of what enters the activations. size
    (B,K-1): the magnitudes that b is the sum of.
    """

    others: Tensor
    A: Tensor
    b: Tensor
    margin: Tensor
    limits: Limits
    size: Tensor

    def of(self, rows: Tensor) -> LinearBounds:
        """Those of some of the examples."""
        limits = {k: (low[rows], high[rows]) for k, (low, high) in self.limits.items()}
        return LinearBounds(self.others[rows], self.A[rows], self.b[rows], self.margin[rows], limits, self.size[rows])

    def at(self, x: Tensor) -> Tensor:
        """The linear functions at images x (B,C,H,W): (B,K-1)."""
        return Dense(self.A).dot(x) + self.b

    def summed(self, x: Tensor) -> Tensor:
        """The magnitudes that `at` is the sum of, at images between -x and x: (B,K-1)."""
        return Dense(self.A).magnitude().dot(x) + self.size


def linear_bounds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    relaxation: Relaxation = "parallel",
    intermediate: Intermediate = "linear",
) -> LinearBounds:
    """Bounds of every margin over the threat model around x (B,C,H,W) with labels y (B,).

    relaxation: of the activations (certifiers/relaxations.py). intermediate: whether the bounds of what enters an
    activation are linear ones too, or intervals (CROWN-IBP; the "IBP-inspired" bounds of section 3.3.1). UserError
    names a layer that cannot be bounded.
    """
    return Bounder(Network(model, x[:1]), relaxation, intermediate).bound(region_of(x, threat), y)


class Bounder:
    """Bounds one network, for any region and label."""

    def __init__(self, network: Network, relaxation: Relaxation, intermediate: Intermediate = "linear") -> None:
        self.network, self.relaxation, self.intermediate = network, relaxation, intermediate
        self._heads: dict[tuple[int, int, int], Pulled] = {}

    def bound(self, region: Region, y: Tensor, *, part: Mapping[int, int] | None = None) -> LinearBounds:
        """Bounds of the margins of labels y (B,) over the region. part: as in `limits`."""
        limits = self.limits(region, part=part)
        return self.margins(region, y, limits, self.lines(limits))

    def in_chunks(self, region: Region, y: Tensor, budget: int | None = None) -> Iterator[tuple[Tensor, LinearBounds]]:
        """Bounds of as many examples at a time as keeps the coefficients held at once within `budget`.

        With each, which examples they are, (b,) int64.
        """
        size, part = self.chunk(region, y, budget)
        for rows in torch.arange(len(y), device=y.device).split(size):
            yield rows, self.bound(region.of(rows), y[rows], part=part)

    def limits(self, region: Region, *, part: Mapping[int, int] | None = None) -> Limits:
        """What enters each activation. part: bound so many of its channels (or units) at a time."""
        if self.intermediate == "ibp":
            return interval_limits(self.network, region)
        found: Limits = {}
        lines: dict[int, Lines] = {}
        for k in self.network.activations:
            shape = self.network.nodes[k].shape
            step = shape[0] if part is None else part[k]
            some = [range(at, min(at + step, shape[0])) for at in range(0, shape[0], step)]
            parts = [self._over(region, k, each, lines) for each in some]
            low, high = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
            found[k] = (low.unflatten(1, shape), high.unflatten(1, shape))
            lines |= self.lines({k: found[k]})
        return found

    def lines(self, limits: Limits) -> dict[int, Lines]:
        """The activations' lines between those limits."""
        return {k: relax(self.network.activation(k), *between, self.relaxation) for k, between in limits.items()}

    def margins(self, region: Region, y: Tensor, limits: Limits, lines: Mapping[int, Lines]) -> LinearBounds:
        """The margins' bounds, given what enters the activations and their lines."""
        others, rows = differences(y, self.network.classes, self.network.image)
        pulled = pull(self.network, Pulled({self.network.output: rows}, up=None), lines)
        margin, _ = pulled.reach({0: region})
        none = torch.zeros_like(margin)
        return LinearBounds(
            others, pulled.rows[0].dense().coefficients, none + pulled.low, margin, limits, none + pulled.size
        )

    def chunk(self, region: Region, y: Tensor, budget: int | None = None) -> tuple[int, dict[int, int]]:
        """How many examples to bound at a time, and of what enters each activation how many channels (or units).

        Measured on the first example, one channel at a time.
        """
        budget = budget or BUDGET.get(y.device.type, BUDGET["cpu"])
        region, y = region.of(torch.zeros(1, dtype=torch.int64, device=y.device)), y[:1]
        lines = self.lines(interval_limits(self.network, region))
        _, rows = differences(y, self.network.classes, self.network.image)
        whole = pull(self.network, Pulled({self.network.output: rows}, up=None), lines).peak
        one: dict[int, int] = {}
        if self.intermediate == "linear":
            one = {k: pull(self.network, self._head(k, range(1)), lines).peak for k in self.network.activations}
        most = max(1, whole, *(each * self.network.nodes[k].shape[0] for k, each in one.items()))
        size = max(1, budget // most)
        return size, {k: max(1, budget // (size * max(1, each))) for k, each in one.items()}

    def _over(self, region: Region, k: int, some: range, lines: Mapping[int, Lines]) -> tuple[Tensor, Tensor]:
        """Bounds of some units of what enters activation k, (B,T) each."""
        head = self._head(k, some)
        low, high = pull(self.network, head, lines).reach({0: region})
        if high is None:
            flipped = Pulled({j: rows.flipped() for j, rows in head.rows.items()}, -head.low, None, head.size)
            high = -pull(self.network, flipped, lines).reach({0: region})[0]
        return low, high

    def _head(self, k: int, some: range) -> Pulled:
        """Units of what enters activation k, pulled back to the activations before: the same for every example."""
        key = (k, some.start, some.stop)
        if key not in self._heads:
            node = self.network.nodes[k]
            rows = units(node.shape, some, self.network.image)
            self._heads[key] = pull(self.network, Pulled({node.inputs[0]: rows}), {}, until=self.network.activations)
        return self._heads[key]


def intersection(limits: Sequence[Limits]) -> Limits:
    """The tightest of several bounds of the same."""

    def tightest(k: int) -> tuple[Tensor, Tensor]:
        low, high = zip(*(each[k] for each in limits), strict=True)
        return torch.stack(low).amax(dim=0), torch.stack(high).amin(dim=0)

    return {k: tightest(k) for k in limits[0]}
