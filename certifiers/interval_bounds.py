"""Interval bound propagation (Algorithm 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from certifiers.activations import Activation
from certifiers.backward import BackwardBound, propagate_backward
from certifiers.graph import Node
from certifiers.input_regions import Ball, Box, Region
from certifiers.joins import Join, Maximum
from certifiers.layers import Interval
from certifiers.linear_forms import margin_specification
from certifiers.network import Network
from certifiers.patch_forms import identity_forms

PreActivationBounds = dict[int, tuple[Tensor, Tensor]]  # by activation node: the lower and upper bound of its input


def propagate_intervals(network: Network, region: Region) -> list[Interval]:
    """The interval of each node's output, from those of its inputs (thesis, Eq. 3.8).

    Under L2 and L1, the inputs of the first activations are bounded over the ball, not over the box around it.
    """
    intervals = [region.interval()]
    for k, node in enumerate(network.nodes[1:], start=1):
        inputs = [intervals[i] for i in node.inputs]
        if isinstance(region, Ball) and k + 1 in network.activations and network.is_linear(k):
            intervals.append(_linear_interval(network, k, region))
        else:
            intervals.append(node_interval(node, inputs))
    return intervals


def node_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    """The interval of one node's output from those of its inputs."""
    if isinstance(node.layer, Join):
        return node.layer.interval(inputs)
    assert node.layer is not None
    return node.layer.interval(*inputs[0])


def interval_margins(network: Network, region: Region, y: Tensor) -> Tensor:
    """Lower bounds of z_y - z_j, (B,K), inf at the label.

    The layers after the last activations (or maxima) are merged into the margins: elision of the last layer (section
    3.1.2).
    """
    intervals = propagate_intervals(network, region)
    bends = [k for k, node in enumerate(network.nodes) if isinstance(node.layer, Activation | Maximum)]
    margins = intervals[-1][0].new_full((len(y), network.classes), torch.inf)
    for label in y.unique():
        rows = (y == label).nonzero().squeeze(1)
        others, forms = margin_specification(label[None], network.classes, network.image)
        start = BackwardBound({network.output: forms}, upper=None)
        bound = propagate_backward(network, start, {}, until=bends)
        regions = {k: Box(*intervals[k]).of(rows) if k else region.of(rows) for k in bound.forms}
        margins[rows[:, None], others] = bound.concretize(regions)[0]
    return margins


def interval_preactivation_bounds(network: Network, region: Region) -> PreActivationBounds:
    """Pre-activation bounds by interval bound propagation."""
    intervals = propagate_intervals(network, region)
    inputs = {k: intervals[network.nodes[k].inputs[0]] for k in network.activations}
    return {k: (center - radius, center + radius) for k, (center, radius) in inputs.items()}


def _linear_interval(network: Network, k: int, region: Region) -> Interval:
    """The interval of a node whose output is a linear function of the image."""
    shape = network.nodes[k].shape
    forms = identity_forms(shape, range(shape[0]), network.image)
    low, high = propagate_backward(network, BackwardBound({k: forms}), {}).concretize({0: region})
    assert high is not None
    return ((low + high) / 2).unflatten(1, shape), ((high - low) / 2).unflatten(1, shape)
