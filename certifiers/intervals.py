"""Interval bounds of every layer (Algorithm 3.2), and what rounding may have done to a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from certifiers.layers import LAMBDA, Add, Interval
from certifiers.network import Network
from certifiers.pulling import Pulled, pull
from certifiers.regions import Ball, Box, Region
from certifiers.rows import differences, units


def propagate(network: Network, region: Region) -> list[Interval]:
    """The interval of each node's output, from those of its inputs alone (Eq. 3.8).

    Under L2 and L1, what the first activations see is bounded over the ball itself, not over the box around it.
    """
    found = [region.interval()]
    for k, node in enumerate(network.nodes[1:], start=1):
        before = [found[i] for i in node.inputs]
        if isinstance(node.layer, Add):
            (a, r), (b, s) = before
            found.append((a + b, r + s))
        elif isinstance(region, Ball) and k + 1 in network.activations and network.is_linear(k):
            found.append(_over(network, k, region))
        else:
            assert node.layer is not None
            found.append(node.layer.interval(*before[0]))
    return found


def interval_margins(network: Network, region: Region, y: Tensor) -> Tensor:
    """Lower bounds of z_y - z_j, (B,K), inf at the label.

    The layers after the last activations are merged into the margins: elision of the last layer (section 3.1.2).
    """
    found = propagate(network, region)
    margin = found[-1][0].new_full((len(y), network.classes), torch.inf)
    for label in y.unique():
        mine = (y == label).nonzero().squeeze(1)
        others, rows = differences(label[None], network.classes, network.image)
        pulled = pull(network, Pulled({network.output: rows}, up=None), {}, until=network.activations)
        regions = {k: Box(*found[k]).of(mine) if k else region.of(mine) for k in pulled.rows}
        low, _ = pulled.reach(regions)
        margin[mine[:, None], others] = low
    return margin


def tolerance(network: Network, region: Region, box: tuple[float, float] | None, margin: Tensor) -> Tensor:
    """What rounding may have done to the least margin (B,) of each example, (B,).

    Twice a logit's, for a margin is made of two. That of all images of the box is used where it decides nothing; only
    the examples whose margin lies within it are looked at one by one.
    """
    found = torch.full_like(margin, torch.inf)
    if box is not None:
        low, high = (torch.full_like(network.image, end) for end in box)
        found[:] = 2 * _rounding(network, Box.between(low, high)).amax()
    doubtful = (margin.abs() <= found).nonzero().squeeze(1)
    if len(doubtful):
        found[doubtful] = 2 * _rounding(network, region.of(doubtful)).amax(dim=1)
    return found


def _rounding(network: Network, region: Region) -> Tensor:
    """The rounding error of each logit, (B,K)."""
    unit = torch.finfo(network.image.dtype).eps / 2
    intervals = propagate(network, region)
    size = [center.abs() + radius for center, radius in intervals]
    error = [unit * size[0]]
    for k, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.layer, Add):
            error.append(torch.hypot(*(error[i] for i in node.inputs)) + LAMBDA * unit * size[k])
        else:
            assert node.layer is not None
            error.append(node.layer.rounding(size[node.inputs[0]], error[node.inputs[0]], unit))
    return error[-1]


def _over(network: Network, k: int, region: Region) -> Interval:
    """The interval of a node that is a linear function of the image."""
    shape = network.nodes[k].shape
    rows = units(shape, range(shape[0]), network.image)
    low, up = pull(network, Pulled({k: rows}), {}).reach({0: region})
    assert up is not None
    return ((low + up) / 2).unflatten(1, shape), ((up - low) / 2).unflatten(1, shape)
