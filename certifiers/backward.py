"""Pulling rows back through a network: linear functions of one layer's output as linear functions of the image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from certifiers.input_regions import Region
from certifiers.layers import Activation, Affine
from certifiers.linear_forms import Rows
from certifiers.network import Network
from certifiers.relaxations import Lines


@dataclass(frozen=True)
class Pulled:
    """A bound that is linear in the outputs of some nodes: the rows at each, and a constant (B|1,T).

    The sum of rows and `low` is a lower bound; with `up` instead of `low` it is an upper one. `up` is None where the
    lines were not parallel, for then the two have different rows. size: the magnitudes that `low` is the sum of. peak:
    the most coefficients held at once, since the first activation on the way (until then they are the same for all
    examples).
    """

    rows: dict[int, Rows]
    low: Tensor | float = 0.0
    up: Tensor | float | None = 0.0
    size: Tensor | float = 0.0
    peak: int = 0

    def reach(self, regions: Mapping[int, Region]) -> tuple[Tensor, Tensor | None]:
        """The least and (where there is `up`) the greatest value, (B,T) each, with each node's output in its region."""
        low, up = self.low, self.up
        for k, rows in self.rows.items():
            center, radius = regions[k].reach(rows)
            low = low + (center - radius)
            up = None if up is None else up + (center + radius)
        assert isinstance(low, Tensor)
        assert up is None or isinstance(up, Tensor)
        return low, up


def pull(network: Network, start: Pulled, lines: Mapping[int, Lines], until: Collection[int] = (0,)) -> Pulled:
    """Replace every node by its inputs, the last first, until only the nodes of `until` (and the image) are left.

    lines: of the activations on the way (Eq. 3.7: a linear function in place of each).
    """
    waiting = dict(start.rows)
    arrived: dict[int, Rows] = {}
    low, up, size, peak = start.low, start.up, start.size, start.peak
    passed = peak > 0
    for k in range(max(waiting), -1, -1):
        rows = waiting.pop(k, None)
        if rows is None:
            continue
        node = network.nodes[k]
        if k == 0 or k in until:
            arrived[k] = rows
            continue
        if isinstance(node.layer, Affine):
            rows, constant = node.layer.back(rows, network.nodes[node.inputs[0]].shape)
            low, up = low + constant, None if up is None else up + constant
            size = size + (constant.abs() if isinstance(constant, Tensor) else abs(constant))
        elif isinstance(node.layer, Activation):
            rows, below, above = _relaxed(rows, lines[k], both=up is not None)
            low, up = low + below, None if up is None or above is None else up + above
            size = size + below.abs()
            passed = True
        peak = max(peak, rows.coefficients.numel()) if passed else 0
        for each in node.inputs:
            waiting[each] = waiting[each].plus(rows) if each in waiting else rows
    return Pulled(arrived, low, up, size, peak)


def _relaxed(rows: Rows, lines: Lines, *, both: bool) -> tuple[Rows, Tensor, Tensor | None]:
    """Rows of an activation's output as rows of its input, and the constants of a lower (and an upper) bound.

    For a lower bound a positive coefficient takes the lower line and a negative one the upper line.
    """
    negative = rows.negative()
    spread = negative.dot(lines.gap)
    below = spread if lines.low_shift is None else spread + rows.dot(lines.low_shift)
    if lines.parallel:
        return rows.times(lines.low_slope), below, rows.dot(lines.up_shift) - spread if both else None
    return rows.times(lines.low_slope).plus(negative.times(lines.up_slope - lines.low_slope)), below, None
