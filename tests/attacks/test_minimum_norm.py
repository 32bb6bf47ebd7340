"""The minimum-norm attacks on linear models, where the nearest adversarial point is known."""

import pytest
import torch
from torch import nn

from bench.core import registry, seeds
from bench.core.contracts import Batch
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from tests.linear import exact_distance, interior_batch, linear_model, near_the_boundary

CPU = torch.device("cpu")
SMALL, MEDIUM, LARGE = (1, 1, 2), (1, 5, 5), (3, 32, 32)
SHAPES = [MEDIUM, *(pytest.param(shape, marks=pytest.mark.slow) for shape in [SMALL, LARGE])]
ATTACKS = [
    ("deepfool", "Linf"), ("deepfool", "L2"),
    ("fmn", "Linf"), ("fmn", "L2"), ("fmn", "L1"),
    ("fab", "Linf"), ("fab", "L2"), ("fab", "L1"),
]  # fmt: skip


CW = [("L2", SMALL, 5), ("L2", MEDIUM, 2), ("L2", LARGE, 5), ("Linf", SMALL, 5)]


def found_by(spec, norm, model, batch):
    attack = parse_spec(spec, registry.attack).make()
    return attack(model, batch, ThreatModel(norm, 0.05), generator=seeds.generator(CPU, 0))


def wrong(model, x_adv, y):
    with torch.no_grad():
        return model(x_adv).argmax(dim=1) != y


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("spec", "norm"), ATTACKS)
def test_finds_the_nearest_point_of_a_linear_model_to_one_percent(spec, norm, shape, classes):
    model = linear_model(shape, classes)
    batch = near_the_boundary(model, shape)
    exact = exact_distance(model, batch, norm)
    reachable = exact < 0.25  # where no ball meets the box
    assert reachable.sum() >= 10
    x_adv = found_by(spec, norm, model, batch)
    assert wrong(model, x_adv, batch.y)[reachable].all()
    distance = ThreatModel(norm, 1.0).distance(x_adv, batch.x)
    assert (distance[reachable] <= 1.01 * exact[reachable] + 1e-6).all()
    assert (distance[reachable] >= 0.999 * exact[reachable] - 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "shape", "classes"), CW)
def test_cw_does_so_at_distances_that_its_step_size_is_made_for(norm, shape, classes):
    model = linear_model(shape, classes)
    with torch.no_grad():
        model[1].weight -= model[1].weight.mean(dim=1, keepdim=True)
    batch = interior_batch(model, shape, 10)
    exact = exact_distance(model, batch, norm)
    reachable = exact < 0.25
    assert reachable.sum() >= 8
    x_adv = found_by("cw", norm, model, batch)
    assert wrong(model, x_adv, batch.y)[reachable].all()
    distance = ThreatModel(norm, 1.0).distance(x_adv, batch.x)
    assert (distance[reachable] <= 1.01 * exact[reachable] + 1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_single_step_is_exact_with_two_classes(norm, shape):
    model = linear_model(shape, 2)
    batch = near_the_boundary(model, shape)
    exact = exact_distance(model, batch, norm)
    x_adv = found_by("single-step", norm, model, batch)
    distance = ThreatModel(norm, 1.0).distance(x_adv, batch.x)
    assert wrong(model, x_adv, batch.y).all()
    assert torch.allclose(distance, exact, rtol=0.01, atol=1e-6)


NAMES = [*ATTACKS, *((spec, norm) for spec in ("single-step", "cw:steps=50:search_steps=3") for norm in ("L2", "Linf"))]


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "norm"), NAMES)
def test_misclassified_images_are_returned(spec, norm):
    model = linear_model((1, 5, 5), 3)
    batch = interior_batch(model, (1, 5, 5), 6)
    batch.y[:3] = (batch.y[:3] + 1) % 3
    x_adv = found_by(spec, norm, model, batch)
    assert torch.equal(x_adv[:3], batch.x[:3])
    assert wrong(model, x_adv, batch.y)[3:].any()


class Constant(nn.Module):
    """Always the first class: nothing to find, no gradient to follow."""

    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]


@pytest.mark.parametrize(("spec", "norm"), NAMES)
def test_a_finite_point_is_returned_if_nothing_can_be_broken(spec, norm):
    batch = Batch(torch.rand((3, 1, 4, 4)), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    x_adv = found_by(spec, norm, Constant(), batch)
    assert x_adv.isfinite().all()
    assert not wrong(Constant(), x_adv, batch.y).any()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("spec", ["deepfool", "fmn-20", "fab-20", "cw:steps=20:search_steps=1", "single-step"])
def test_a_tie_that_argmax_decides_for_the_label_is_broken_by_a_tiny_step(spec, norm):
    attack = parse_spec(spec, registry.attack).make()
    if norm not in attack.norms:
        pytest.skip("no form for this norm")
    model = linear_model(MEDIUM, 3)
    with torch.no_grad():
        model[1].bias.zero_()
    tied = nn.Sequential(Centred(), model)
    batch = Batch(torch.full((2, *MEDIUM), 0.5), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert not wrong(tied, batch.x, batch.y).any()
    x_adv = found_by(spec, norm, tied, batch)
    assert wrong(tied, x_adv, batch.y).all()
    distance = ThreatModel(norm, 1.0).distance(x_adv, batch.x)
    assert (distance > 0).all()
    assert (distance < 1e-4).all()


class Centred(nn.Module):
    """x - 0.5, with which all logits of a linear model without bias are zero for a grey image."""

    def forward(self, x):
        return x - 0.5
