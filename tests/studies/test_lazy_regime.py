"""Lazy training on closed forms: one-neuron networks, known crossings, and the lemma on sign changes."""

import json
import math

import numpy as np
import pytest
import torch

from bench.studies.claims import output
from bench.studies.lazy_training import lazy_regime
from bench.studies.lazy_training.lazy_networks import (
    LR,
    Lazy,
    Points,
    can_change_sign,
    flipping_steps,
    robust_accuracy,
    sign_change_bound,
    train_adversarially,
    train_lazily,
    zeros_and_ones,
)
from bench.studies.lazy_training.lazy_results import Grid, Plan, where_it_passes_half


@pytest.fixture
def mnist(tmp_path):
    """Ten classes of 28 x 28 images: a bright left half is a 0, a bright right half a 1, the others are grey."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 10
    x = rng.integers(0, 60, (200, 28, 28))
    x[y == 0, :, :14] += 150
    x[y == 1, :, 14:] += 150
    np.savez(tmp_path / "mnist.npz", x_train=x.astype(np.uint8), y_train=y, x_test=x.astype(np.uint8), y_test=y)
    return str(tmp_path)


def blobs(n=64, dim=6):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = torch.randn(n, dim, generator=generator) / 4
    x[:, 0] += 2.0 * y - 1
    return Points(x / x.norm(dim=1, keepdim=True), y)


def test_the_data_are_zeros_and_ones_averaged_to_fewer_pixels(mnist):
    train, _ = zeros_and_ones(mnist, 2, normalised=False)
    assert set(train.y.tolist()) == {0, 1}
    assert len(train.y) == 40
    assert (train.x[train.y == 0][:, [0, 2]] > 0.5).all()
    assert (train.x[train.y == 1][:, [0, 2]] < 0.3).all()
    unit, _ = zeros_and_ones(mnist, 7, normalised=True)
    assert torch.allclose(unit.x.norm(dim=1), torch.ones(40))


def test_training_stops_before_a_neuron_leaves_its_ball():
    net, radius = Lazy(6, 20, 0, bias=True), 0.3 / math.sqrt(20)
    assert train_lazily(net, blobs(), c0=0.3, epochs=20, seed=0)
    assert 0 < (net.joined() - net.start).norm(dim=1).max() <= radius
    free = Lazy(6, 20, 0, bias=True)
    assert torch.equal(free.start, net.start)
    assert not train_lazily(free, blobs(), c0=1e3, epochs=1, seed=0)


def test_a_step_is_gradient_descent_on_the_logistic_loss():
    net, points = Lazy(6, 20, 0, bias=False), blobs(4)
    weight = net.stem.weight.detach().clone().requires_grad_()
    top = 2 * net.model.output.weight[1]
    f = (points.x @ weight.T).clamp(min=0) @ top
    torch.log1p((-(2 * points.y - 1) * f).exp()).mean().backward()
    net.step(points.x, points.y, LR)
    assert torch.allclose(net.stem.weight, weight - 0.1 * weight.grad, atol=1e-6)


def test_the_smallest_step_is_exact_where_the_network_is_linear():
    net = Lazy(2, 2, 0, bias=False)
    with torch.no_grad():  # f = relu(10 x_1) / sqrt(2) - relu(x_2) / sqrt(2)
        net.stem.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 1.0]]))
        net.model.output.weight.copy_(torch.tensor([[-0.5, 0.5], [0.5, -0.5]]) / math.sqrt(2))
    x = torch.tensor([[0.2, 1.0], [0.1, 3.0]])
    steps = flipping_steps(net, Points(x, torch.tensor([1, 0])))
    f, norm = output(net.model, x).detach().abs(), math.sqrt(101 / 2)
    assert torch.allclose(steps.gradient, torch.full((2,), norm))
    assert torch.allclose(steps.eta, f / norm**2, rtol=1e-2)
    assert torch.allclose(steps.size, f / norm / x.norm(dim=1), rtol=1e-2)


def test_adversarial_training_stays_in_the_balls_and_helps():
    points, delta = blobs(), 0.2
    net, free = Lazy(6, 40, 1, bias=False), Lazy(6, 40, 1, bias=False)
    before = robust_accuracy(net, points, delta, 10)
    train_adversarially(net, points, delta=delta, radius=0.01, epochs=2, steps=3, seed=0)
    assert (net.joined() - net.start).norm(dim=1).max() <= 0.01 + 1e-6
    train_adversarially(free, points, delta=delta, radius=10.0, epochs=20, steps=3, seed=0)
    assert robust_accuracy(free, points, delta, 10) > max(before, 0.9)


def test_only_neurons_that_are_counted_change_sign_and_the_lemma_bounds_them():
    """A certain statement: any weights in the balls; and lemma B.4, over 2,000 networks at its probability."""
    generator, width, c0 = torch.Generator().manual_seed(0), 64, 2.0
    radius, above = c0 / math.sqrt(width), 0
    for _ in range(200):
        start = torch.randn(width, 5, generator=generator)
        x = torch.nn.functional.normalize(torch.randn(10, 5, generator=generator), dim=1)
        worst = radius * torch.nn.functional.normalize(torch.randn(width, 5, generator=generator), dim=1)
        changed = ((x @ start.T > 0) != (x @ (start + worst).T > 0)).sum(dim=1)
        count = can_change_sign(start, x, radius)
        assert (changed <= count).all()
        above += int((count > sign_change_bound(width, c0, 0.05)).sum())
    assert above <= 0.05 * 2000
    towards = start - radius * (x[0] @ start.T).sign()[:, None] * x[0]  # the worst weights for one point
    assert ((x[0] @ start.T > 0) != (x[0] @ towards.T > 0)).sum() == can_change_sign(start, x, radius)[0]


def test_a_crossing_is_interpolated_in_the_logarithm():
    assert where_it_passes_half(np.array([1.0, 0.75, 0.25]), (1.0, 2.0, 8.0)) == pytest.approx(4.0)
    assert math.isnan(where_it_passes_half(np.array([1.0, 0.9]), (1.0, 2.0)))
    grid = Grid([1, 2], [1.0, 4.0], np.array([[[0.0, 1.0], [1.0, 0.0]]]))
    assert grid.passes().tolist() == [[pytest.approx(2.0), pytest.approx(2.0)]]


@pytest.mark.slow
def test_the_study_reports_every_figure(mnist, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    tiny = Plan(
        sides=(2, 4), widths=(20, 40), c0s=(0.5, 10.0), main=(40, 10.0), seeds=2, train=40, test=10, at_sides=(2, 4),
        at_widths=(20, 40), at_width=20, at_side=2, at_train=20, at_epochs=1, at_steps=(1, 2), at_seeds=2,
    )  # fmt: skip
    monkeypatch.setattr(lazy_regime, "SMALL", tiny)
    study = lazy_regime.LazyRegimeStudy(data_dir=mnist, json=True, figure=str(tmp_path / "a.svg"))
    result = json.loads(study.run())
    assert len(result["tables"]) == 5
    assert {"Figure 2", "Figure 5", "Theorem 3.1", "Lemma 4.3"} <= {
        c["claim"].partition(":")[0] for c in result["claims"]
    }
    (lemma,) = [claim for claim in result["claims"] if "sqrt(2m/pi)" in claim["claim"]]
    assert lemma["verdict"] == "holds"
    assert "figure 7" in (tmp_path / "a.svg").read_text()
