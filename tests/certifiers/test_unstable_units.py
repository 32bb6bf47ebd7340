"""Only unstable units get linear bounds, and nothing changes by that."""

import pytest
import torch
from torch import nn

from bench.core.layers import Residual
from bench.core.threat import ThreatModel
from certifiers.activations import RELU, TANH, Rectifier, leaky_relu
from certifiers.input_regions import Box, region_of
from certifiers.linear_bounds import BoundedNetwork
from certifiers.network import Network
from certifiers.unstable_units import ForwardIntervals, groups, unit_lists
from tests.networks import drawn_weights, images

NETWORKS = {
    "convolutions": lambda: [
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3),
    ],
    "residual": lambda: [
        nn.Conv2d(1, 4, 3), nn.ReLU(), Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.PReLU(4, init=0.3))),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3),
    ],
}  # fmt: skip


def case(name, norm, eps=0.02):
    model = drawn_weights(nn.Sequential(*NETWORKS[name]()).double().eval(), 1, 1.0).requires_grad_()
    x, y = images((1, 6, 6), 5, 0), torch.arange(5) % 3
    region = region_of(x, ThreatModel(norm, eps * torch.linspace(0.2, 2, 5), None))
    return model, Network(model, x[:1]), region, y


def unproven(self, low, high):
    return torch.ones_like(low, dtype=torch.bool)


@pytest.mark.parametrize("relaxation", ["parallel", "adaptive"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_margins_are_those_with_linear_bounds_of_every_unit(name, norm, relaxation, monkeypatch):
    model, network, region, y = case(name, norm, 0.02 if norm == "Linf" else 0.05)
    bounded, some = [], BoundedNetwork.bound_units

    def recorded(self, region, k, units, relaxations):
        if relaxations:
            bounded.append(units)
        return some(self, region, k, units, relaxations)

    monkeypatch.setattr(BoundedNetwork, "bound_units", recorded)
    found = BoundedNetwork(network, relaxation).bound(region, y)
    assert any(isinstance(units, torch.Tensor) for units in bounded)
    with monkeypatch.context() as patched:
        patched.setattr(Rectifier, "unstable", unproven)
        bounded.clear()
        wanted = BoundedNetwork(network, relaxation).bound(region, y)
        assert not any(isinstance(units, torch.Tensor) for units in bounded)
    torch.testing.assert_close(found.margin, wanted.margin)
    ours, theirs = (torch.autograd.grad(each.margin.square().sum(), model.parameters()) for each in (found, wanted))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found.A, wanted.A)
    for k, (low, high) in wanted.preactivation.items():
        unstable = network.activation(k).unstable(low, high)
        for side, every in zip(found.preactivation[k], (low, high), strict=True):
            torch.testing.assert_close(side[unstable], every[unstable])


def test_most_units_of_a_small_ball_cost_nothing(monkeypatch):
    _, network, region, y = case("convolutions", "Linf", 1e-4)
    counts, some = [], BoundedNetwork.bound_units

    def counted(self, region, k, units, relaxations):
        if relaxations:
            counts.append(units.numel())
        return some(self, region, k, units, relaxations)

    monkeypatch.setattr(BoundedNetwork, "bound_units", counted)
    BoundedNetwork(network, "parallel").bound(region, y)
    assert sum(counts) < 0.02 * 5 * (54 + 20)


def test_units_of_a_curve_are_never_stable():
    low, high = torch.tensor([-2.0, 1.0, -1.0, 0.0, 0.0]), torch.tensor([-1.0, 2.0, 1.0, 1.0, 0.0])
    assert TANH.unstable(low, high).all()
    for each in (RELU, leaky_relu(0.1)):
        assert each.unstable(low, high).tolist() == [False, False, True, False, False]


def test_intervals_are_those_of_the_lines():
    """relu over [-1, 2] is between 2/3 x and 2/3 x + 2/3; of two such units, the difference is within 8/3."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    model.double()
    for layer, weight in ((model[1], torch.eye(2)), (model[3], torch.tensor([[1.0, -1.0]]))):
        layer.weight.data, layer.bias.data = weight.double(), torch.zeros(len(weight)).double()
    image = torch.full((1, 1, 1, 2), 0.5).double()
    network = Network(model, image)
    first, second = network.activations
    low, high = torch.full((1, 2), -1.0).double(), torch.full((1, 2), 2.0).double()
    for kind, least in (("parallel", -2 / 3), ("adaptive", -1.0)):
        intervals = ForwardIntervals(network, Box(image, torch.full_like(image, 1.5)))
        intervals.relax(first, RELU.relax(low, high, kind), low, high)
        found = intervals.of_input(second)
        assert [each.item() for each in found] == pytest.approx([least - 2, 2 - least, True])


def test_lists_have_the_units_of_a_mask():
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]]).bool()
    units, listed = unit_lists(mask)
    assert listed.sum(dim=1).tolist() == [2, 0, 3]
    assert units.tolist() == [[1, 3, 0], [0, 0, 0], [0, 1, 3]]
    assert units[listed].tolist() == mask.nonzero()[:, 1].tolist()


@pytest.mark.parametrize(
    ("counts", "capacity", "wanted"),
    [
        ([3, 40, 0, 45, 30, 0, 10], 1000, [([3, 1, 4], 45), ([6], 10), ([0], 3), ([2, 5], 0)]),
        ([3, 40, 0, 45, 30, 0, 10], 90, [([3, 1], 45), ([4], 30), ([6], 10), ([0], 3), ([2, 5], 0)]),
        ([70, 20, 90, 45], 1, [([0], 100), ([2], 100), ([3], 45), ([1], 20)]),
        ([0, 0], 1, [([0, 1], 0)]),
    ],
)
def test_groups_have_similar_counts(counts, capacity, wanted):
    found = [(rows.tolist(), count) for rows, count in groups(torch.tensor(counts), 100, capacity)]
    assert [(sorted(rows), count) for rows, count in found] == [(sorted(rows), count) for rows, count in wanted]
