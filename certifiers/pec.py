"""Polyhedral envelope certification."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import DUAL_ORDER, TINY, TOLERANCE, ThreatModel
from certifiers.hyperplane_distance import distance
from certifiers.input_regions import Box, region_of
from certifiers.linear_bounds import BoundedNetwork, LinearBounds
from certifiers.linear_forms import DenseForms
from certifiers.margin_certifier import MarginCertifier, insert_label
from certifiers.network import Network
from certifiers.proofs import rule_proof
from certifiers.rounding import linear_bounds_error, rounding_error


@registry.certifier("pec")
@dataclass(frozen=True, kw_only=True)
class PEC(MarginCertifier):
    """fast-lin and, if that fails, the distance to the polyhedral envelope that its linear bounds define.

    Liu, Salzmann, Suesstrunk, "Training Provably Robust Models by Polyhedral Envelope Regularization" (2021); thesis,
    section 3.3.1 and Algorithm 3.4. No adversarial example is nearer than the nearest hyperplane of the envelope, so
    the radius is min(eps, d_y) even if eps is not certified. Under L2 the distance is measured inside the box, which
    the linear bounds ignore, so that it certifies more than fast-lin.
    """

    norms = ("Linf", "L2")

    relaxation: Literal["eq35", "tight"] = "eq35"  # eq35: fast-lin's (thesis, Eq. 3.4, 3.5); tight: crown's

    def proof(self, network: Network, label: int) -> bytes:
        """The proof for an example whose margins are positive over the whole region; the envelope has no proof."""
        return rule_proof(network, label, "adaptive" if self.relaxation == "tight" else "parallel")

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return self.bounds(network, x, y, threat)[0]

    def bounds(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        region = region_of(x, threat)
        largest_error = (
            torch.inf if threat.box is None else rounding_error(network, Box.whole(network.image, threat.box))
        )
        bounded = BoundedNetwork(network, "tight" if self.relaxation == "tight" else "parallel")
        margins, radius = [], torch.zeros_like(x[:, 0, 0, 0])
        for rows, bounds in bounded.in_chunks(region, y):
            margins.append(insert_label(bounds.margin, bounds.others))
            uncertified = (bounds.margin.amin(dim=1) <= largest_error).nonzero().squeeze(1)
            if len(uncertified):
                if len(uncertified) < len(rows):
                    bounds, rows = bounds.of(uncertified), rows[uncertified]
                error = linear_bounds_error(network, region.of(rows), bounds)
                radius[rows] = envelope(bounds, x[rows], threat.of(rows), error)
        return torch.cat(margins), radius


def envelope(bounds: LinearBounds, x: Tensor, threat: ThreatModel, error: Tensor) -> Tensor:
    """The certified radius min(eps, d_y) of the images x (B,C,H,W), (B,); 0 if every margin is positive over eps.

    Distances are divided by 1 + 2 TOLERANCE, because a threat model contains points at 1 + TOLERANCE times its eps.
    error (B,K-1): the rounding error of the bounds, which is subtracted from them. Without a box the distance has a
    closed form (Lemma 3.1), and the box only increases it. So the distance is computed first for the hyperplane that is
    nearest without a box, and then only for those that might be nearer.
    """
    short = bounds.margin <= error
    largest = bounds.A.abs().flatten(2).amax(dim=2)
    scale = torch.where(largest > 0, largest, 1)  # of the hyperplanes' equations, whose products could underflow
    value, normal = (bounds.at(x) - error) / scale, bounds.A / scale[:, :, None, None, None]
    without_box = value / DenseForms(normal).norm(DUAL_ORDER[threat.norm]).clamp(min=TINY)
    without_box = torch.where(short, without_box, torch.inf)
    eps = threat.eps_like(x).flatten().to(x.dtype)
    radius = torch.where(short.any(dim=1), eps.expand(len(x)), 0.0)
    nearest = torch.zeros_like(short).scatter(1, without_box.argmin(dim=1, keepdim=True), True)
    for chosen in (nearest, ~nearest):
        near = without_box < radius[:, None] * (1 + 2 * TOLERANCE)
        example, target = (chosen & short & near).nonzero(as_tuple=True)
        planes = normal[example, target, None], value[example, target, None]
        distances = distance(*planes, x[example], threat.norm, threat.box).squeeze(1) / (1 + 2 * TOLERANCE)
        radius = radius.scatter_reduce(0, example, distances, "amin")
    return radius
