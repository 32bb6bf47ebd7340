"""Landscapes of known curvature, counts of optima, escapes and rates; that wrong signs are seen."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from bench.core.errors import CheckError
from bench.studies.first_order import first_order
from bench.studies.first_order.first_order_claims import Plan, defined_mean
from bench.studies.first_order.first_order_dynamics import curvature_signs, escape, shrinking_rate, steps_until_near
from bench.studies.first_order.first_order_images import Images, escapes, train_adversarially
from bench.studies.first_order.first_order_landscape import Landscape, landscape, maxima_on_circle


class Output(nn.Module):
    """f(x) = function(x), as two logits."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        f = self.function(x)
        return torch.stack([-f / 2, f / 2], dim=1)


def space_of(function, dim=2, eps=0.5, loss="quadratic"):
    """y = -1 and x = 0, so the quadratic loss is (1 + f)^2."""
    return Landscape(Output(function), torch.zeros(1, dim, dtype=torch.float64), eps, 0, loss)


def linear(dim=2, eps=0.5, loss="quadratic"):
    return space_of(lambda x: x[:, 0], dim, eps, loss)


def generator():
    return torch.Generator().manual_seed(0)


def test_both_losses_and_their_gradients():
    delta = torch.tensor([[0.2, 0.1]]).double()
    assert float(linear().values(delta)) == pytest.approx(1.2**2)
    assert torch.allclose(linear().gradients(delta), torch.tensor([[2.4, 0.0]]).double())
    entropy = linear(loss="cross entropy")
    assert float(entropy.values(delta)) == pytest.approx(math.log(1 + math.exp(0.2)))
    assert torch.allclose(entropy.output_gradients(delta), torch.tensor([[1.0, 0.0]]).double())


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_optima_on_the_circle_are_counted(k):
    """f = cos(k angle) has k maxima; (1 + f)^2 has the same, as f >= -1."""
    space = space_of(lambda x: (k * torch.atan2(x[:, 1], x[:, 0])).cos())
    maxima = maxima_on_circle(space)
    assert len(maxima) == k
    assert torch.allclose(space.values(maxima), torch.tensor(4.0).double(), atol=1e-5)


def test_ascent_finds_the_maximum_and_descent_the_minimum():
    ends = linear(3).optima(linear(3).starts(10, generator()))
    assert torch.allclose(ends, torch.tensor([0.5, 0, 0]).double(), atol=1e-3)
    ends = linear(3).optima(linear(3).starts(10, generator()), sign=-1)
    assert torch.allclose(ends, torch.tensor([-0.5, 0, 0]).double(), atol=1e-3)


def test_gamma_is_tangent_and_xi_is_that_of_the_lagrangian():
    """f linear: the Hessian of (1 + f)^2 is 2 e e^T, and lambda* = <grad, delta> / (2 eps^2)."""
    space, delta = linear(3), torch.tensor([[0.3, 0.4, 0.0]]).double()
    gradient = torch.tensor([2 * 1.3, 0, 0]).double()
    normal = delta[0] / 0.5
    assert torch.allclose(space.tangent(delta)[0], gradient - (gradient @ normal) * normal)
    expected = torch.diag(torch.tensor([2.0, 0, 0])).double() - 2 * (gradient @ delta[0]) / (2 * 0.25) * torch.eye(3)
    assert torch.allclose(space.curvature(delta)[0], expected.double())


def test_curvature_is_definite_near_the_optima_of_a_linear_network_and_a_saddle_is_seen():
    signs = curvature_signs(linear(4, eps=0.05), generator())
    assert signs.wrong == 0
    assert signs.points > 50
    assert signs.residual < 1e-3
    bent = space_of(lambda x: x[:, 0] + 40 * (x[:, 1] ** 2 - x[:, 2] ** 2), dim=3, eps=0.5)
    assert curvature_signs(bent, generator()).wrong > 0


def test_steps_until_near_an_optimum_and_the_wrong_pole():
    space = linear(3, eps=0.05)
    steps, wrong, ends = steps_until_near(space, space.starts(5, generator()), eta=2e-3)
    assert 0 < steps < 500
    assert wrong == 0
    assert (normalize(ends, dim=1)[:, 0] > 0.9).all()
    pole = torch.tensor([[-0.05, 1e-9, 0.0]]).double()
    assert steps_until_near(space, pole, eta=2e-4)[1] == 1


def test_shrinking_steps_converge_at_the_rate_of_the_corollary():
    """f linear: Xi is -2 lambda I off the gradient, so D_s falls as (z + s)^-4 while steps are small."""
    space = linear(3, eps=0.05)
    start = 0.05 * normalize(torch.tensor([[1.0, 0.1, 0.0]]).double(), dim=1)
    assert shrinking_rate(space, start, eta=1e-3, steps=300) < -2


def test_an_escape_takes_longer_in_a_larger_ball():
    steps = []
    for eps in (0.01, 0.1):
        path, needed = escape(linear(2, eps), generator(), eta=0.001)
        assert len(path) == needed + 1
        values = linear(2, eps).values(path)
        low, high = (1 - eps) ** 2, (1 + eps) ** 2
        assert values[-1] >= low + 0.9 * (high - low) - 1e-6 > values[-2]
        steps.append(needed)
    assert steps[1] > 3 * steps[0]


def test_random_landscapes_have_the_paper_s_scales():
    space = landscape(16, 400, 2.0, 0.5, 0)
    assert space.eps == 1.0
    assert float(space.x.norm()) == pytest.approx(2.0)
    assert 0.9 < float(space.model.stem.weight.detach().var()) * 16 < 1.1
    assert float((2 * space.label - 1) * (space.model(space.x) @ torch.tensor([-1.0, 1.0]).double()).detach()) < 0


def test_images_escape_and_training_changes_the_network():
    rng = torch.Generator().manual_seed(0)
    images = Images(torch.rand(4, 1, 28, 28, generator=rng), torch.tensor([0, 1, 0, 1]))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    path = escapes(model, images, 0.1, 0.1, eta=0.02, steps=60, seed=0)
    assert path.shape == (61, 4)
    assert (path[0] < 0.1).all()
    assert (path[-1] > path[5]).all()
    assert path.max() <= 1 + 1e-3
    before = model[1].weight.detach().clone()
    train_adversarially(model, images, 0.1, epochs=2, seed=0)
    assert not torch.equal(before, model[1].weight)
    model[1].weight.data.fill_(torch.inf)
    with pytest.raises(CheckError, match="diverged"):
        train_adversarially(model, images, 0.1, epochs=1, seed=0)


def test_progress_is_undefined_where_the_loss_is_flat_and_left_out_of_means():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with torch.no_grad():
        model[1].weight.zero_()
    images = Images(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
    assert escapes(model, images, 0.1, 0.1, eta=0.02, steps=3, seed=0).isnan().all()
    nan = math.nan
    assert defined_mean(np.array([[1.0, nan, nan], [3.0, 4.0, nan]])).tolist()[:2] == [2.0, 4.0]
    assert np.isnan(defined_mean(np.array([[nan], [nan]]))).all()


@pytest.mark.slow
def test_the_study_reports_every_claim(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 28, 28)).astype(np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    tiny = Plan(
        networks=2, width=30, etas=(0.5, 0.3), shrinking=30, images=3, ratios=(0.1,), steps=5, train=20, epochs=(0, 1)
    )
    monkeypatch.setattr(first_order, "SMALL", tiny)
    study = first_order.FirstOrderStudy(data_dir=str(tmp_path), figure=str(tmp_path / "a.svg"), json=True)
    result = json.loads(study.run())
    verdicts = {claim["claim"]: claim["verdict"] for claim in result["claims"]}
    assert verdicts["Figure 1: one optimum at the smallest input scale, up to the largest ratio"] == "holds"
    for loss in ("quadratic", "cross entropy"):
        assert verdicts[f"Theorem 3.1 ({loss}): PGD ends on the sphere near a local optimum"] == "holds"
    assert len(result["tables"]) == 7
    assert "Fig. 3: 1 epochs" in (tmp_path / "a.svg").read_text()
