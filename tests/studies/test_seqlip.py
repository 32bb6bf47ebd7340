"""AutoLip and SeqLip on networks whose constant is known, or found by trying every mask."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.errors import UserError
from bench.studies.adversarial_training.seqlip import constants, largest_masked_norm, linear_runs, sequence_norm


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def test_ascent_finds_the_best_mask_of_small_matrices():
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 6), (6, 4)))
        masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)
        best = max(float(torch.linalg.matrix_norm((left * mask) @ right, ord=2)) for mask in masks)
        found = largest_masked_norm(left, right, 20, generator)
        assert found <= best * (1 + 1e-9)
        assert found == pytest.approx(best, rel=0.02)


def test_seqlip_is_between_the_networks_slopes_and_autolip():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(200, 1, 4, 4)
    found = constants(model, x[:1], starts=20)
    slopes = torch.stack([torch.func.jacrev(model)(each[None]).reshape(3, 16) for each in x])
    assert float(torch.linalg.matrix_norm(slopes.detach(), ord=2).max()) <= found.seqlip < found.autolip


def test_units_that_do_not_meet_lower_seqlip_only():
    """The first layer feeds unit 1 strongly, the second reads unit 2 strongly: no mask keeps both."""
    first, second = torch.diag(torch.tensor([10.0, 1.0])), torch.diag(torch.tensor([1.0, 10.0]))
    model = nn.Sequential(nn.Flatten(), linear(first), nn.ReLU(), linear(second))
    found = constants(model, torch.zeros(1, 1, 1, 2))
    assert found.autolip == pytest.approx(100, rel=1e-6)
    assert found.seqlip == pytest.approx(10, rel=1e-6)


def test_runs_are_split_by_pooling_and_hold_the_jacobians():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(),
        nn.Linear(5, 2),
    )  # fmt: skip
    image = torch.rand(1, 1, 4, 4)
    runs = linear_runs(model, image)
    assert [[tuple(matrix.shape) for matrix in run] for run in runs] == [[(32, 16)], [(5, 8), (2, 5)]]
    model.double()
    bias = model[0](torch.zeros(1, 1, 4, 4).double())
    assert torch.allclose(runs[0][0] @ image.double().flatten(), (model[0](image.double()) - bias).flatten())
    generator = torch.Generator().manual_seed(0)
    assert sequence_norm(runs[0], 1, generator) == pytest.approx(float(torch.linalg.matrix_norm(runs[0][0], ord=2)))


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.MaxPool2d(3, stride=1)])
def test_other_layers_are_refused(layer):
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(np.prod((1, 4, 4)).item(), 2))
    with pytest.raises(UserError, match="SeqLip"):
        linear_runs(model, torch.zeros(1, 1, 4, 4))
