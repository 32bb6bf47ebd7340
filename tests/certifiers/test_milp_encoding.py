"""With fixed pixels, the minimum of a margin's program is the network's own margin."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from bench.core.contracts import Batch
from bench.core.layers import Normalize, Residual
from bench.core.threat import ThreatModel
from certifiers.exact import Encoder


def networks():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return [model.eval().requires_grad_(False) for model in made()]


def made():
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU(0.2))
    norm = body[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    head = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)]
    yield nn.Sequential(Normalize((0.3,), (0.5,)), nn.Conv2d(1, 3, 2, stride=2), nn.ReLU(), Residual(body), *head)
    yield nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3))
    for _ in range(4):  # so narrow that a unit moves the margin one way only
        deep = [nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 3)]
        deep[2].bias.data = -(deep[2].weight @ (deep[0].weight.sum(dim=1) / 2 + deep[0].bias).relu())
        yield nn.Sequential(nn.Flatten(), *deep)
    yield nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def solve(program, pixels):
    low, high = program.low.copy(), program.high.copy()
    low[: len(pixels)] = high[: len(pixels)] = pixels
    rows = LinearConstraint(program.matrix, ub=program.limit) if len(program.limit) else ()
    solution = milp(program.cost, bounds=Bounds(low, high), constraints=rows, integrality=program.integer)
    return solution.fun + program.constant


@pytest.mark.parametrize("model", networks())
def test_at_fixed_pixels_the_minimum_is_the_margin(model):
    x = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    encoder = Encoder(model, Batch(x, torch.arange(3), torch.arange(3)), ThreatModel("Linf", 0.2))
    noise = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    points = (x + 0.4 * noise - 0.2).clamp(0, 1)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(points.double())
    for label, point in enumerate(points):
        encoding = encoder.encoding(label)
        for other in {0, 1, 2} - {label}:
            program = encoding.program(label, other)
            wanted = float(logits[label, label] - logits[label, other])
            assert solve(program, point.double().flatten().numpy()) == pytest.approx(wanted, abs=1e-5)


def test_integers_only_where_a_unit_must_not_be_too_large():
    """One hidden layer: those with a negative weight in the margin, of the unstable ones."""
    model = networks()[1]
    x = torch.full((1, 1, 8, 8), 0.5)
    encoding = Encoder(
        model, Batch(x, torch.zeros(1, dtype=torch.int64), torch.arange(1)), ThreatModel("Linf", 0.1)
    ).encoding(0)
    weight, bias = (value.double() for value in model[1].parameters())
    enters, spread = weight.sum(dim=1) / 2 + bias, weight.abs().sum(dim=1) / 10
    unstable = enters.abs() < spread
    factor = model[3].weight[0] - model[3].weight[2]
    program = encoding.program(0, 2)
    assert 0 < program.integer.sum() == (unstable & (factor < 0)).sum() < unstable.sum() < 9
    assert len(program.low) == 64 + int(unstable.sum()) + program.integer.sum()
    assert np.allclose(program.high[64 : -program.integer.sum()], (enters + spread)[unstable].numpy(), atol=1e-6)
