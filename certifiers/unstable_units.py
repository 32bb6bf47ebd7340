"""Which units of an activation's input need linear bounds, per example.

Where an interval proves that a ReLU is linear (a stable unit), its relaxation is exact and does not depend on the ends
of the interval, so linear bounds of its input are not needed. The intervals are those of the relaxations: the output of
an activation ranges between its two lines. Under Linf such an interval is never tighter than the linear bounds that the
same relaxations give. So a unit that it proves stable is also stable by its linear bounds, and bounding only the others
changes no margin (except by rounding).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from certifiers.input_regions import Region
from certifiers.interval_bounds import node_interval
from certifiers.layers import Interval
from certifiers.network import Network
from certifiers.relaxations import LinearRelaxation

MANY = 0.6  # above this share of a layer's units, bounding all of them with shared coefficients is faster
SIMILAR = 0.5  # the smallest count of a group as a share of its largest


class ForwardIntervals:
    """Intervals of nodes over a region, given the relaxations of the activations before them; without gradients."""

    def __init__(self, network: Network, region: Region) -> None:
        self.network = network
        self._known: dict[int, Interval] = {0: region.interval()}

    @torch.no_grad()
    def relax(self, k: int, relaxation: LinearRelaxation, low: Tensor, high: Tensor) -> None:
        """The relaxation of activation k, whose input is in [low, high], (B,*shape) each."""
        least, most = relaxation.enclosure(low, high)
        self._known[k] = (least + most) / 2, (most - least) / 2

    @torch.no_grad()
    def of(self, k: int) -> Interval:
        """The interval of node k's output, for which every activation before it must have been relaxed."""
        if k not in self._known:
            node = self.network.nodes[k]
            self._known[k] = node_interval(node, [self.of(i) for i in node.inputs])
        return self._known[k]

    @torch.no_grad()
    def of_input(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The lower and upper bound of activation k's input, and which units are unstable, (B,*shape) each."""
        center, radius = self.of(self.network.nodes[k].inputs[0])
        low, high = center - radius, center + radius
        return low, high, self.network.activation(k).unstable(low, high)


def unit_lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The units of a mask (B,F) as lists (B,T) int64, filled with 0, and which entries are not filling (B,T)."""
    counts = mask.sum(dim=1)
    listed = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]
    units = torch.zeros_like(listed, dtype=torch.int64).masked_scatter(listed, mask.nonzero()[:, 1])
    return units, listed


def groups(counts: Tensor, units: int, capacity: int) -> Iterator[tuple[Tensor, int]]:
    """Rows (b,) of examples with similar `counts` (B,) of unstable units, and the largest of these counts.

    b times that count is at most `capacity`, unless b is 1. A count above the share MANY of all `units` is raised to
    `units`. The last group contains the examples whose count is 0.
    """
    counts = torch.where(counts > MANY * units, units, counts)
    order = counts.argsort(descending=True)
    sizes = counts[order].tolist()
    start = 0
    while start < len(sizes):
        largest = sizes[start]
        most = max(1, capacity // largest) if largest else len(sizes)
        stop = start + 1
        while stop < len(sizes) and stop - start < most and sizes[stop] >= largest * SIMILAR:
            stop += 1
        yield order[start:stop], largest
        start = stop
