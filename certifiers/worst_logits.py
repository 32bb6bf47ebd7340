"""Upper bounds of the logits relative to the label's logit: their loss bounds the loss at every point of the ball."""

import torch
from torch import Tensor, nn

from bench.core.contracts import mode_of
from bench.core.shares import in_shares
from bench.core.threat import ThreatModel
from certifiers.input_regions import region_of
from certifiers.interval_bounds import interval_margins
from certifiers.linear_bounds import BoundedNetwork, Intermediate
from certifiers.margin_certifier import insert_label
from certifiers.network import Network
from certifiers.relaxations import RelaxationKind


def interval_worst_logits(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Upper bounds of z_j - z_y over the threat model by intervals, (B,K), 0 at the label y (B,).

    x: images (B,C,H,W). Differentiable in the weights. Batch norm is in eval mode.
    """

    def bounded(x: Tensor, y: Tensor) -> Tensor:
        with mode_of(model, training=False):
            return of_margins(interval_margins(Network(model, x[:1]), region_of(x, threat), y), y)

    return in_shares(model, bounded, x, y)


def linear_worst_logits(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    relaxation: RelaxationKind = "parallel",
    intermediate: Intermediate = "linear",
    interval_share: float = 0.0,
) -> Tensor:
    """`interval_worst_logits` by linear bounds (see certifiers/linear_bounds.py for the options).

    interval_share: weight of the interval bounds; the linear bounds have the rest of the weight.
    """

    def bounded(x: Tensor, y: Tensor) -> Tensor:
        with mode_of(model, training=False):
            network, region = Network(model, x[:1]), region_of(x, threat)
            bounds, known = BoundedNetwork(network, relaxation, intermediate), None
            if bounds.pulls_units:
                with torch.no_grad():
                    known = BoundedNetwork(network, relaxation).preactivation_bounds(region)
            linear = bounds.bound(region, y, known)
            worst = of_margins(insert_label(linear.margin, linear.others), y)
            if not interval_share:
                return worst
            return torch.lerp(worst, of_margins(interval_margins(network, region, y), y), interval_share)

    return in_shares(model, bounded, x, y)


def of_margins(margins: Tensor, y: Tensor) -> Tensor:
    """Convert lower bounds of z_y - z_j (B,K), with any value at the label, to upper bounds of z_j - z_y."""
    return (-margins).scatter(1, y[:, None], torch.zeros_like(margins[:, :1]))
