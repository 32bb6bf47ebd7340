"""Polyhedral envelope certification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.core import registry
from bench.core.threat import TINY, ThreatModel
from certifiers.distance import distance
from certifiers.input_regions import DUAL, Box, region_of
from certifiers.intervals import DEVIATIONS, rounding, wandering
from certifiers.linear import Bounder, LinearBounds
from certifiers.linear_forms import Dense
from certifiers.margin_certifier import MarginCertifier, whole
from certifiers.network import Network


@registry.certifier("pec")
@dataclass(frozen=True, kw_only=True)
class PEC(MarginCertifier):
    """fast-lin, and where that fails the distance to the envelope that its linear bounds draw around the image.

    Liu, Salzmann, Suesstrunk, "Training Provably Robust Models by Polyhedral Envelope Regularization" (2021); thesis,
    section 3.3.1 and Algorithm 3.4. No adversarial example is nearer than the nearest of its hyperplanes, so the radius
    is min(eps, d_y) even where eps is not certified. Under L2 the distance is measured inside the box, which the linear
    bounds ignore: there it certifies more than fast-lin. relaxation: `eq35` is fast-lin's (Eq. 3.4 and 3.5); `tight` is
    crown's, with an adaptive slope for ReLU.
    """

    norms = ("Linf", "L2")

    relaxation: Literal["eq35", "tight"] = "eq35"

    def margins(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return self.bounds(network, x, y, threat)[0]

    def bounds(self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        region = region_of(x, threat)
        most = torch.inf if threat.box is None else rounding(network, Box.whole(network.image, threat.box))
        unit = torch.finfo(x.dtype).eps / 2
        margins, radius = [], torch.zeros_like(x[:, 0, 0, 0])
        for rows, bounds in Bounder(network, "tight" if self.relaxation == "tight" else "parallel").in_chunks(
            region, y
        ):
            margins.append(whole(bounds.margin, bounds.others))
            left = (bounds.margin.amin(dim=1) <= most).nonzero().squeeze(1)
            if len(left):
                if len(left) < len(rows):
                    bounds, rows = bounds.of(left), rows[left]
                here = region.of(rows)
                center, reach = here.interval()
                common = DEVIATIONS * unit * bounds.summed(center.abs() + reach)
                slack = wandering(network, here, bounds.limits)[:, None] + common
                radius[rows] = envelope(bounds, x[rows], threat.of(rows), slack)
        return torch.cat(margins), radius


def envelope(bounds: LinearBounds, x: Tensor, threat: ThreatModel, slack: Tensor) -> Tensor:
    """The certified radius min(eps, d_y) of the images x (B,C,H,W), (B,); 0 where every margin is positive over eps.

    slack (B,K-1): what rounding may have done to the bounds; it is taken off them. Without a box the distance is known
    at once (Lemma 3.1), and inside it is larger: so the hyperplane that is nearest without a box comes first, and of
    the others only those that might be nearer.
    """
    short = bounds.margin <= slack
    value = bounds.at(x) - slack
    least = torch.where(short, value / Dense(bounds.A).norm(DUAL[threat.norm]).clamp(min=TINY), torch.inf)
    eps = threat.eps_like(x).flatten().to(x.dtype)
    found = torch.where(short.any(dim=1), eps.expand(len(x)), 0.0)
    first = torch.zeros_like(short).scatter(1, least.argmin(dim=1, keepdim=True), True)
    for chosen in (first, ~first):
        example, target = (chosen & short & (least < found[:, None])).nonzero(as_tuple=True)
        planes = bounds.A[example, target, None], value[example, target, None]
        away = distance(*planes, x[example], threat.norm, threat.box).squeeze(1)
        found = found.scatter_reduce(0, example, away, "amin")
    return found
