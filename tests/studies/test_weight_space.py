"""Hessian, steps in weight space and Bezier curves on networks small enough for the dense answer."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core.contracts import Batch
from bench.core.threat import ThreatModel
from bench.studies.adversarial_training.weight_space import (
    Curve,
    estimate_batch_norm,
    hessian_product,
    landscape,
    perturbation_cosine,
    random_direction,
    robust_loss,
    spectrum,
    weights_of,
    with_weights,
)


def network(seed=0, batchnorm=False):
    torch.manual_seed(seed)
    norm = [nn.BatchNorm2d(2)] if batchnorm else []
    return nn.Sequential(nn.Conv2d(1, 2, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def images(n=20):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 3
    return Batch(torch.rand(n, 1, 4, 4, generator=generator), y, torch.arange(n))


def dense_hessian(model, x, y):
    model = with_weights(model, weights_of(model)).double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(theta):
        parts = theta.split([s.numel() for s in shapes])
        weights = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(torch.func.functional_call(model, weights, (x.double(),)), y)

    return torch.autograd.functional.hessian(loss, weights_of(model)).numpy()


def test_the_eigenvalues_are_those_of_the_dense_hessian():
    model, batch = network(), images()
    dense = dense_hessian(model, batch.x, batch.y)
    found = spectrum(model, batch.x, batch.y, k=5, seed=0)
    wanted = np.linalg.eigvalsh(dense)[::-1]
    assert np.allclose(found.values, wanted[:5], rtol=1e-4, atol=1e-8)
    v = np.random.default_rng(0).normal(size=len(dense))
    assert np.allclose(hessian_product(model, batch.x, batch.y)(v), dense @ v, atol=1e-10)
    assert np.allclose(dense @ found.vectors, found.vectors * found.values, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_of_a_copy_do_not_change_the_model_in_any_memory_layout(layout):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), *network())
    expected = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    model = model.to(memory_format=layout)
    theta = weights_of(model)
    assert torch.equal(theta, expected)
    other = with_weights(model, theta + 1)
    assert torch.equal(weights_of(model), theta)
    assert torch.allclose(weights_of(other), theta + 1)


def test_the_landscape_has_the_loss_of_the_model_in_its_middle():
    model, batch, threat = network(), images(), ThreatModel("Linf", 0.1)
    theta = weights_of(model)
    axes = torch.eye(len(theta))[:, :2].numpy()
    values = landscape(model, batch, threat, axes, (-0.1, 0.0, 0.1))
    assert values[1, 1] == pytest.approx(robust_loss(model, batch, threat, 0))
    moved = with_weights(model, theta + 0.1 * torch.from_numpy(axes[:, 0]) - 0.1 * torch.from_numpy(axes[:, 1]))
    assert values[2, 0] == pytest.approx(robust_loss(moved, batch, threat, 0))


def test_perturbations_agree_for_equal_weights_and_not_for_far_ones():
    model, batch, threat = network(), images(), ThreatModel("Linf", 0.1)
    v = random_direction(len(weights_of(model)), 0)
    assert float(v.norm()) == pytest.approx(1)
    assert perturbation_cosine(model, batch, threat, v, 0.0, runs=2) == pytest.approx(1)
    assert perturbation_cosine(model, batch, threat, v, 50.0, runs=1) < 0.9


def test_a_bezier_curve_joins_its_ends():
    start, end = network(0), network(1)
    curve = Curve(start, end, order=3)
    assert torch.allclose(curve.point(0.0), weights_of(start))
    assert torch.allclose(curve.point(1.0), weights_of(end))
    with torch.no_grad():
        curve.middle += torch.randn(curve.middle.shape, generator=torch.Generator().manual_seed(0))
    points = torch.stack([weights_of(start), *curve.middle.detach(), weights_of(end)])
    shares = torch.tensor([math.comb(3, i) * 0.7 ** (3 - i) * 0.3**i for i in range(4)])
    assert torch.allclose(curve.point(0.3), shares @ points, atol=1e-6)


def test_a_trained_curve_has_a_lower_loss_and_the_same_ends():
    start, end, batch = network(0), network(1), images()
    curve = Curve(start, end, order=2)

    def loss():
        return float(np.mean([robust_loss(curve.at(t, batch.x), batch, None, 0) for t in (0.3, 0.5, 0.7)]))

    before = loss()
    curve.train(lambda: iter([batch]), None, steps=60, attack_steps=1, lr=0.05, seed=0)
    assert loss() < before - 0.05
    assert torch.allclose(weights_of(curve.at(0.0, batch.x)), weights_of(start))


def test_batch_norm_is_estimated_again():
    model, batch = network(batchnorm=True), images()
    with torch.no_grad():
        model[1].running_mean.fill_(7.0)
    estimate_batch_norm(model, batch.x)
    features = model[0](batch.x)
    assert torch.allclose(model[1].running_mean, features.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(model[1].running_var, features.transpose(0, 1).flatten(1).var(dim=1), atol=1e-5)
    assert model[1].momentum == 0.1
    assert not model.training
