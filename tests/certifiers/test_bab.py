"""Branch and bound against the enumeration of all activation patterns."""

import copy
import os
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.example_table import Threat
from bench.core.threat import ThreatModel
from certifiers.alpha_crown import AlphaCrown
from certifiers.bab import BranchAndBound
from certifiers.counterexample_search import CounterexampleSearch
from certifiers.input_regions import region_of
from certifiers.local_relaxation import LocalRelaxation
from certifiers.network import Network
from certifiers.network_description import described_network
from leaderboard.recheck.network import Network as Checked
from leaderboard.recheck.proofs import check_proof

NETWORKS = int(os.environ.get("BAB_NETWORKS", "3"))  # of each norm
HARD = [0, 70, 72, 88]  # networks that need splits at Linf 0.5
G = torch.Generator()


def network(seed, widths=(5, 5, 3), scale=2.2):
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for k, (inputs, outputs) in enumerate(zip((4, *widths[:-1]), widths, strict=True)):
        layers += [nn.ReLU()] if k else []
        layers.append(nn.Linear(inputs, outputs))
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model, torch.rand(1, 1, 2, 2)


def least_margin(model, x, threat):
    """The least margin of the predicted class over an Linf or L1 ball, by one linear program for each pattern."""
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().double().numpy() for layer in linear]
    biases = [layer.bias.detach().double().numpy() for layer in linear]
    center, label = x.flatten().double().numpy(), int(model(x).argmax())
    low, high = (np.full(4, -np.inf), np.full(4, np.inf)) if threat.box is None else (np.zeros(4), np.ones(4))
    zeros, eye = np.zeros((4, 4)), np.eye(4)
    if threat.norm == "Linf":
        low, high = np.maximum(low, center - threat.eps), np.minimum(high, center + threat.eps)
        ball, reach = np.zeros((0, 8)), np.zeros(0)
    else:  # variables x and t with |x - center| <= t and sum(t) <= eps
        ball = np.vstack([np.hstack([eye, -eye]), np.hstack([-eye, -eye]), np.hstack([zeros[:1], np.ones((1, 4))])])
        reach = np.concatenate([center, -center, [threat.eps]])
    least = np.inf
    for pattern in product((0.0, 1.0), repeat=sum(len(bias) for bias in biases[:-1])):
        matrix, constant, at = np.eye(4), np.zeros(4), 0
        rows, ends = [ball], [reach]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            active = np.array(pattern[at : at + len(bias)])
            matrix, constant, at = weight @ matrix, weight @ constant + bias, at + len(bias)
            sign = (1 - 2 * active)[:, None]
            rows.append(np.hstack([sign * matrix, np.zeros_like(matrix)]))
            ends.append(-sign[:, 0] * constant)
            matrix, constant = active[:, None] * matrix, active * constant
        matrix, constant = weights[-1] @ matrix, weights[-1] @ constant + biases[-1]
        for other in set(range(len(constant))) - {label}:
            objective = np.concatenate([matrix[label] - matrix[other], np.zeros(4)])
            limits = [*zip(low, high, strict=True), *[(0, None)] * 4]
            found = linprog(objective, np.vstack(rows), np.concatenate(ends), bounds=limits)
            if found.status == 0:
                least = min(least, found.fun + constant[label] - constant[other])
    return least


def decide(model, x, threat, **options):
    batch = Batch(x, model(x).argmax(dim=1), torch.arange(len(x)))
    return BranchAndBound(**options)(model, batch, threat, generator=G)


def proves(model, x, threat, proof):
    """Whether the checker accepts a proof."""
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    checked = Checked(described_network(model, x), state)
    stated = Threat(threat.norm, threat.eps)
    check_proof(checked, proof, x[0].numpy(), int(model(x).argmax()), stated)


@pytest.mark.parametrize("threat", [ThreatModel("Linf", 0.5), ThreatModel("L1", 0.8, None)], ids=["Linf", "L1"])
def test_verdicts_are_those_of_the_enumeration(threat):
    for seed in range(NETWORKS):
        model, x = network(seed, (4, 3, 3))
        least = least_margin(model, x, threat)
        if abs(least) > 1e-3:
            assert decide(model, x, threat).status == ["certified" if least > 0 else "broken"], (seed, least)


def test_l2_balls_are_decided_and_no_certified_point_is_misclassified():
    threat, generator = ThreatModel("L2", 0.6, None), torch.Generator().manual_seed(0)
    for seed in range(NETWORKS):
        model, x = network(seed)
        certificate = decide(model, x, threat)
        assert certificate.status != ["open"]
        if certificate.certified:
            points = x + threat.random_delta(x.expand(2000, -1, -1, -1), generator)
            points = threat.project(torch.cat([points, x + 10 * (points - x)]), x)
            assert (model(points).argmax(dim=1) == model(x).argmax()).all()


@pytest.mark.parametrize("seed", HARD)
def test_splits_prove_what_bounds_without_splits_do_not(seed):
    """The proof is checked, and a proof for a smaller ball does not pass for a larger one."""
    model, x = network(seed)
    threat = ThreatModel("Linf", 0.5)
    batch = Batch(x, model(x).argmax(dim=1), torch.arange(1))
    assert AlphaCrown()(model, batch, threat, generator=G).status == ["open"]
    assert decide(model, x, threat, nodes=1).status == ["open"]
    certificate = decide(model, x, threat)
    assert certificate.status == ["certified"]
    proves(model, x, threat, certificate.proof[0])
    with pytest.raises(UserError, match="not positive"):
        proves(model, x, ThreatModel("Linf", 1.0), certificate.proof[0])


def test_an_example_is_decided_alone():
    """The other examples of a batch change nothing, not even a byte of a proof."""
    model, _ = network(HARD[0])
    x = torch.cat([network(seed)[1] for seed in range(8)])
    threat = ThreatModel("Linf", 0.5)
    together = decide(model, x, threat)
    alone = [decide(model, each[None], threat) for each in x]
    assert list(together.proof) == [each.proof[0] for each in alone]
    assert together.status == [each.status[0] for each in alone]
    assert {"certified", "broken"} <= set(together.status)


def test_a_convolutional_network_with_max_pooling():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.LeakyReLU(0.1),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip
    x = torch.rand(6, 1, 4, 4)
    threat = ThreatModel("Linf", 0.25)
    certificate = decide(model, x, threat)
    assert certificate.certified.any()
    for i in certificate.certified.nonzero().squeeze(1).tolist():
        proves(model, x[i : i + 1], threat, certificate.proof[i])


def test_curves_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    with pytest.raises(UserError, match="tanh is not piecewise linear; use alpha-crown"):
        decide(model, torch.rand(1, 1, 2, 2), ThreatModel("Linf", 0.1))


@pytest.mark.parametrize("leak", [0.01, 1.2, 1.5])
def test_what_alpha_crown_certifies_is_certified_with_any_leak(leak):
    certified = 0
    for seed in range(6):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(9, 8), nn.LeakyReLU(leak), nn.Linear(8, 8), nn.LeakyReLU(leak)]
        model = nn.Sequential(*layers, nn.Linear(8, 3)).eval()
        for parameter in model.parameters():
            parameter.data.mul_(2)
        x = torch.rand(4, 1, 3, 3)
        batch, threat = Batch(x, model(x).argmax(dim=1), torch.arange(4)), ThreatModel("Linf", 0.08)
        first = AlphaCrown()(model, batch, threat, generator=G).certified
        found = BranchAndBound(nodes=60)(model, batch, threat, generator=G)
        assert found.certified[first].all()
        certified += int(first.sum())
    assert certified > 5


def test_a_slope_stays_in_its_range_in_another_dtype():
    """The float32 number next to 0.01 is below it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LeakyReLU(0.01), nn.Linear(3, 2)).eval()
    x = torch.rand(1, 1, 2, 2)
    with torch.no_grad():
        single, double = (
            LocalRelaxation(network, region_of(network.image, ThreatModel("Linf", 0.5)), {k: (-ones, ones)})
            for network in (Network(model, x), Network(copy.deepcopy(model).double(), x.double()))
            for k in network.activations
            for ones in [network.image.new_ones(1, 3)]
        )
        slopes = torch.full((1, 3), 0.01)
        moved, _ = single.transferred(slopes, torch.zeros_like(slopes), double)
    assert slopes.double().min() < 0.01
    assert moved.dtype == torch.float64
    assert moved.min() >= 0.01


def test_of_several_counterexamples_the_first_is_kept():
    model = nn.Flatten()
    x = torch.tensor([[[[1.0, 0.0]]]])
    batch = Batch(x, torch.tensor([0]), torch.tensor([7]))
    search = CounterexampleSearch(model, batch, ThreatModel("Linf", 1.0))
    points = torch.tensor([[1.0, 0.5], [0.1, 0.9], [0.3, 0.8]]).reshape(3, 1, 1, 2)
    search.check(points, torch.zeros(3, dtype=torch.int64))
    assert search.broken.tolist() == [True]
    assert torch.equal(search.witness[0], points[1])
