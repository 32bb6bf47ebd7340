"""No bound is violated by a network with any of the layers that are not in every random network of test_bounds.py.

LAYER_NETWORKS sets how many networks of each layer there are (the bar: 200).
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core.contracts import Batch
from bench.core.threat import ThreatModel
from certifiers.activations import Rectifier
from certifiers.alpha_crown import AlphaCrown
from certifiers.crown import Crown, CrownIBP, FastLin
from certifiers.exact import Exact
from certifiers.faithfulness import check_logits
from certifiers.graph import apply
from certifiers.ibp import IBP
from certifiers.input_regions import region_of
from certifiers.linear_bounds import BoundedNetwork
from certifiers.lipschitz import Lipschitz
from certifiers.network import Network
from certifiers.pec import PEC
from tests.networks import LAYERS, images, margins_at, networks_with, points, threats

NETWORKS, POINTS = int(os.environ.get("LAYER_NETWORKS", "1")), int(os.environ.get("BOUNDS_POINTS", "100"))
DOUBLES = 1e-9  # what rounding may do in double precision, relative to the largest value
EXAMPLES = 3
MARGINS = (IBP(), FastLin(), Crown(), Crown(relaxation="tight"), CrownIBP(), AlphaCrown(steps=3))
some = settings(max_examples=NETWORKS, deadline=None, derandomize=True, database=None)


def outputs_of(network, x):
    """The output of every node for images (N,C,H,W)."""
    outputs = [x]
    for node in network.nodes[1:]:
        outputs.append(apply(node.layer, [outputs[k] for k in node.inputs]))
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_no_point_violates_a_bound_of_a_layer(layer):
    @some
    @given(networks_with(layer), threats(EXAMPLES), st.integers(0, 9))
    def check(case, threat, seed):
        model, shape, _ = case
        x = images(shape, EXAMPLES, seed)
        with torch.no_grad():
            y = model(x).argmax(dim=1)
        found = points(model, x, y, threat, POINTS, seed)
        least = margins_at(model, found, y).amin(dim=0)
        slack = DOUBLES * (1 + least[least.isfinite()].abs().max())
        network = Network(model, x[:1])
        check_logits(network, model, found[:20].flatten(0, 1))
        with torch.no_grad():
            for certifier in MARGINS:
                assert (certifier.margins(network, x, y, threat) <= least + slack).all(), certifier
        values = outputs_of(network, found[::5].flatten(0, 1))
        for relaxation, intermediate in (("parallel", "linear"), ("adaptive", "linear"), ("tight", "ibp")):
            bounded = BoundedNetwork(network, relaxation, intermediate)
            limits = bounded.preactivation_bounds(region_of(x, threat))
            for k, (low, high) in limits.items():
                entering = values[network.nodes[k].inputs[0]].unflatten(0, (-1, EXAMPLES))
                room = DOUBLES * (1 + entering.abs().max())
                assert (entering >= low - room).all(), (k, relaxation)
                assert (entering <= high + room).all(), (k, relaxation)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS if NETWORKS > 1 else LAYERS[::4])
def test_no_point_violates_a_certificate_of_a_layer(layer):
    """In float32, as certifiers are used."""

    @settings(some, max_examples=max(1, NETWORKS // 2))
    @given(networks_with(layer), threats(EXAMPLES), st.integers(0, 9))
    def check(case, threat, seed):
        model, shape, _ = case
        x = images(shape, EXAMPLES, seed).float()
        with torch.no_grad():
            y = model(x.double()).argmax(dim=1)
        least = margins_at(model, points(model, x.double(), y, threat, POINTS, seed), y).amin(dim=(0, 2))
        batch, single = Batch(x, y, torch.arange(EXAMPLES)), model.float()
        certifiers = [*MARGINS, PEC(), Lipschitz()]
        network = Network(single, x[:1])
        if all(isinstance(network.activation(k), Rectifier) for k in network.activations) and seed < 2:
            certifiers.append(Exact(nodes=20, solver="highs"))
        for certifier in certifiers:
            if threat.norm in certifier.norms:
                certificate = certifier(single, batch, threat, generator=torch.Generator())
                assert (least[certificate.certified] > 0).all(), certifier
                if certificate.margins is not None:
                    tolerance = torch.as_tensor(certificate.tolerance)
                    assert (certificate.margins.amin(dim=1) <= least.float() + tolerance).all(), certifier
        model.double()

    check()


def test_a_maximum_of_two_pixels_is_bounded_exactly_by_intervals():
    """The interval of max(a, b) is [max(low_a, low_b), max(high_a, high_b)]."""
    model = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(1, 2)).double()
    model[2].weight.data = torch.tensor([[1.0], [-1.0]]).double()
    model[2].bias.data.zero_()
    x = torch.tensor([0.1, 0.5, 0.45, 0.3]).double().view(1, 1, 2, 2)
    found = IBP().margins(Network(model, x), x, torch.tensor([0]), ThreatModel("Linf", 0.1))
    assert found[0, 1].item() == pytest.approx(2 * 0.4, abs=1e-6)
