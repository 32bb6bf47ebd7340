"""Rounding analysis: how much floating-point rounding may have changed a computed bound."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.core.threat import ThreatModel
from certifiers.activations import Activation
from certifiers.input_regions import Box, Region, region_of
from certifiers.interval_bounds import PreActivationBounds, interval_preactivation_bounds
from certifiers.joins import Join
from certifiers.layers import Affine
from certifiers.linear_bounds import LinearBounds
from certifiers.network import Network

EQUAL_TERMS = 1 / 3  # the error of a sum of n equal terms, in n units of the sum; in torch's convolutions at most 1/4
DEVIATIONS = 8.0  # stated standard deviations, far above any error seen (tests/certifiers/test_margin_certifier.py)


def margin_tolerance(network: Network, x: Tensor, threat: ThreatModel, margin: Tensor) -> Tensor:
    """Bound the effect of rounding on the smallest margin (B,) of each image x (B,C,H,W), (B,).

    The error over all images of the box suffices for most examples. Only if the margin is within it, the error is
    computed per example.
    """
    error = torch.full_like(margin, torch.inf)
    if threat.box is not None:
        error[:] = rounding_error(network, Box.whole(network.image, threat.box))
    doubtful = (margin.abs() <= error).nonzero().squeeze(1)
    if len(doubtful):
        error[doubtful] = rounding_error(network, region_of(x[doubtful], threat.of(doubtful)))
    return error


def rounding_error(network: Network, region: Region) -> Tensor:
    """How much rounding may change a margin over the region, (B,).

    The sum of two errors: the one accumulated from layer to layer, and the one in a product of all weights, which is
    DEVIATIONS units in the last place of the sum of all products through the whole network.
    """
    magnitude = _magnitudes(network, region, lambda k, size: network.activation(k).magnitude(size))
    unit = torch.finfo(magnitude[-1].dtype).eps / 2
    return accumulated_rounding_error(network, region) + DEVIATIONS * unit * 2 * magnitude[-1].amax(dim=1)


def accumulated_rounding_error(
    network: Network, region: Region, bounds: PreActivationBounds | None = None, *, typical: bool = False
) -> Tensor:
    """How much rounding in one layer after another may change a margin, (B,): DEVIATIONS standard deviations.

    The larger of two errors counts for each sum of n products, as one standard deviation times DEVIATIONS: for sums of
    equal products (average pooling, a constant part of an image), EQUAL_TERMS units of the sum of their absolute values
    for each of the products that are added one after another; and that of n additions with independent errors of at
    most one unit of the partial sum, whose squares are on average at most the sum of the squares of all products. The
    errors of different sums are taken as independent. typical: only the latter. bounds: pre-activation bounds, if they
    are already known.
    """
    unit = torch.finfo(network.image.dtype).eps / 2
    intervals = interval_preactivation_bounds(network, region) if bounds is None else bounds

    def of_image(k: int, _: Tensor) -> Tensor:
        low, high = network.activation(k).image(*intervals[k])
        return torch.maximum(low.abs(), high.abs())

    magnitude = _magnitudes(network, region, of_image)
    variance = [(unit * magnitude[0]).square()]
    for k, node in enumerate(network.nodes[1:], start=1):
        layer, i = node.layer, node.inputs[0]
        if isinstance(layer, Join):
            before = layer.variance([variance[each] for each in node.inputs])
            variance.append(before + (unit * magnitude[k]).square())
        elif isinstance(layer, Affine):
            own = layer.variance(layer.terms * (unit * magnitude[i]).square())
            if not typical:
                own = torch.maximum(own, (EQUAL_TERMS * layer.in_sequence * unit / DEVIATIONS * magnitude[k]).square())
            variance.append(layer.variance(variance[i]) + own)
        else:
            assert isinstance(layer, Activation)
            variance.append(variance[i] * layer.steepest**2 + (unit * magnitude[k]).square())
    return DEVIATIONS * (2 * variance[-1].amax(dim=1)).sqrt()


def _magnitudes(network: Network, region: Region, of_activation: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    """For each node, the largest sum of the absolute values of an output's terms over the region, (B,*shape).

    of_activation: returns it for activation k, given that of its input.
    """
    center, radius = region.interval()
    magnitude = [center.abs() + radius]
    for k, node in enumerate(network.nodes[1:], start=1):
        sizes = [magnitude[i] for i in node.inputs]
        if isinstance(node.layer, Join):
            magnitude.append(node.layer.magnitude(sizes))
        elif isinstance(node.layer, Affine):
            magnitude.append(node.layer.magnitude(sizes[0]))
        else:
            magnitude.append(of_activation(k, sizes[0]))
    return magnitude


def linear_bounds_error(network: Network, region: Region, bounds: LinearBounds) -> Tensor:
    """How much rounding may change the linear bounds of the margins at an image of the region, (B,K-1)."""
    center, radius = region.interval()
    unit = torch.finfo(center.dtype).eps / 2
    common = DEVIATIONS * unit * bounds.magnitude_at(center.abs() + radius)
    return accumulated_rounding_error(network, region, bounds.preactivation)[:, None] + common
