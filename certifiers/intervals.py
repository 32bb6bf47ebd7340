"""Interval bounds of every layer (Algorithm 3.2), and what rounding may have done to a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.core.threat import ThreatModel
from certifiers.backward import Pulled, pull
from certifiers.input_regions import Ball, Box, Region, region_of
from certifiers.layers import Activation, Add, Affine, Interval
from certifiers.linear_forms import differences, units
from certifiers.network import Network

Limits = dict[int, tuple[Tensor, Tensor]]  # of each activation's input, by the activation's node: least and greatest

DEVIATIONS = (
    8.0  # what is stated of rounding: far beyond what was ever seen (tests/certifiers/test_margin_certifier.py)
)


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


def tolerance(network: Network, x: Tensor, threat: ThreatModel, margin: Tensor) -> Tensor:
    """What rounding may have done to the least margin (B,) of each image x (B,C,H,W), (B,).

    That of all images of the box is used where it decides nothing; only the examples whose margin lies within it are
    looked at one by one.
    """
    found = torch.full_like(margin, torch.inf)
    if threat.box is not None:
        found[:] = rounding(network, Box.whole(network.image, threat.box))
    doubtful = (margin.abs() <= found).nonzero().squeeze(1)
    if len(doubtful):
        found[doubtful] = rounding(network, region_of(x[doubtful], threat.of(doubtful)))
    return found


def rounding(network: Network, region: Region) -> Tensor:
    """What rounding may do to a margin, over the region: (B,).

    What the layers round off one by one (`wandering`), and what they round off in common, as a product of their weights
    does: `DEVIATIONS` units of the sum of all products through the whole network.
    """
    center, radius = region.interval()
    size = [center.abs() + radius]
    for node in network.nodes[1:]:
        before = size[node.inputs[0]]
        if isinstance(node.layer, Add):
            before = before + size[node.inputs[1]]
        elif isinstance(node.layer, Affine):
            before = node.layer.magnitude(before)
        elif isinstance(node.layer, Activation):
            before = torch.maximum(node.layer.function(before).abs(), node.layer.function(-before).abs())
        size.append(before)
    unit = torch.finfo(size[-1].dtype).eps / 2
    return wandering(network, region) + DEVIATIONS * unit * 2 * size[-1].amax(dim=1)


def wandering(network: Network, region: Region, limits: Limits | None = None) -> Tensor:
    """What rounding in one layer after the other may do to a margin, (B,): `DEVIATIONS` of its standard deviation.

    Each of the n additions of a sum rounds off at most a unit of the partial sum that it makes, up or down like a coin.
    Partial sums are taken to wander: their squares are on average no larger than the squares of all n products
    together. What one layer rounds off, the next carries on. limits: of what enters the activations, where they are
    known already.
    """
    unit = torch.finfo(network.image.dtype).eps / 2
    limits = interval_limits(network, region) if limits is None else limits
    center, radius = region.interval()
    size = [center.abs() + radius]
    variance = [(unit * size[0]).square()]
    for k, node in enumerate(network.nodes[1:], start=1):
        layer, before = node.layer, node.inputs[0]
        if isinstance(layer, Add):
            size.append(size[before] + size[node.inputs[1]])
            variance.append(variance[before] + variance[node.inputs[1]] + (unit * size[k]).square())
        elif isinstance(layer, Affine):
            size.append(layer.magnitude(size[before]))
            variance.append(layer.variance(variance[before] + layer.terms * (unit * size[before]).square()))
        else:
            assert isinstance(layer, Activation)
            low, high = (layer.function(end) for end in limits[k])
            size.append(torch.maximum(low.abs(), high.abs()))
            variance.append(variance[before] * layer.slope[1] ** 2 + (unit * size[k]).square())
    return DEVIATIONS * (2 * variance[-1].amax(dim=1)).sqrt()


def interval_limits(network: Network, region: Region) -> Limits:
    """What enters each activation, bounded by intervals."""
    found = propagate(network, region)
    between = {k: found[network.nodes[k].inputs[0]] for k in network.activations}
    return {k: (center - radius, center + radius) for k, (center, radius) in between.items()}


def _over(network: Network, k: int, region: Region) -> Interval:
    """The interval of a node that is a linear function of the image."""
    shape = network.nodes[k].shape
    rows = units(shape, range(shape[0]), network.image)
    low, up = pull(network, Pulled({k: rows}), {}).reach({0: region})
    assert up is not None
    return ((low + up) / 2).unflatten(1, shape), ((up - low) / 2).unflatten(1, shape)
