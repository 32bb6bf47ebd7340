"""Spectral norms against the singular values of the unrolled layers; linear models, where the bound is exact."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.core.contracts import Batch
from bench.core.layers import Normalize, Residual
from bench.core.threat import TOLERANCE, ThreatModel
from certifiers.linear_forms import Kernel
from certifiers.lipschitz import Lipschitz, conv_norm, layer_constants, margin_constants
from certifiers.network import Network
from tests.linear import exact_margin, interior_batch, linear_model

GENERATOR = torch.Generator()


def unrolled_norm(kernel, size):
    """The largest singular value of the convolution as a matrix."""
    channels = kernel.weight.shape[1] * kernel.groups
    pixels = torch.eye(channels * math.prod(size), dtype=torch.float64).reshape(-1, channels, *size)
    weight, geometry = kernel.weight.double(), (kernel.stride, kernel.padding, kernel.dilation, kernel.groups)
    return torch.linalg.matrix_norm(F.conv2d(pixels, weight, None, *geometry).flatten(1), ord=2)


@pytest.mark.parametrize("seed", range(60))
def test_a_convolution_stretches_no_more_than_its_bound(seed):
    draw = random.Random(seed)
    side, stride, padding, dilation = ((draw.randint(1, m), draw.randint(1, m)) for m in (4, 3, 2, 2))
    groups = draw.choice([1, 1, 2])
    reach = [d * (k - 1) + 1 for k, d in zip(side, dilation, strict=True)]
    size = tuple(draw.randint(max(1, r - 2 * p), 9) for r, p in zip(reach, padding, strict=True))
    shape = (groups * draw.randint(1, 3), draw.randint(1, 3), *side)
    weight = torch.randn(shape, generator=GENERATOR.manual_seed(seed))
    weight = weight.abs() if draw.random() < 0.5 else weight
    kernel = Kernel(weight, stride, padding, dilation, groups)
    assert conv_norm(kernel, size) >= unrolled_norm(kernel, size)


@pytest.mark.parametrize(
    ("shape", "stride", "padding", "size"),
    [((4, 3, 3, 3), 1, 1, (12, 12)), ((4, 3, 4, 4), 2, 1, (12, 12)), ((6, 4, 1, 1), 2, 0, (9, 9))],
)
def test_the_bound_of_a_convolution_is_near(shape, stride, padding, size):
    weight = torch.randn(shape, generator=GENERATOR.manual_seed(0))
    kernel = Kernel(weight, (stride, stride), (padding, padding), (1, 1), 1)
    assert conv_norm(kernel, size) <= 1.03 * unrolled_norm(kernel, size)


def scaled(factor, features):
    layer = nn.Linear(features, features, bias=False)
    nn.init.eye_(layer.weight)
    layer.weight.data *= factor
    return layer


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers)


def batch_norm(weight, variance):
    layer = nn.BatchNorm2d(len(weight), eps=0.0)
    layer.weight.data = torch.tensor(weight)
    layer.running_var = torch.tensor(variance)
    return layer


@pytest.mark.parametrize(
    ("layer", "constant"),
    [
        (nn.Flatten(), 1.0),
        (nn.Identity(), 1.0),
        (nn.ReLU(), 1.0),
        (nn.LeakyReLU(0.1), 1.0),
        (nn.Tanh(), 1.0),
        (nn.Sigmoid(), 0.25),
        (nn.AvgPool2d(2), 0.5),
        (nn.AvgPool2d(4), 0.25),
        (nn.AdaptiveAvgPool2d(1), 0.25),
        (Normalize([0.5, 0.3], [0.25, 0.2]), 5.0),
        (batch_norm([1.0, -6.0], [4.0, 9.0]), 2.0),
        (flat(scaled(-3.0, 32)), 3.0),
        (flat(scaled(3.0, 32), nn.ReLU(), scaled(2.0, 32)), 6.0),
        (flat(Residual(scaled(2.0, 32))), 3.0),
        (flat(Residual(scaled(2.0, 32), scaled(5.0, 32))), 7.0),
        (flat(scaled(3.0, 32), Residual(scaled(2.0, 32)), scaled(0.5, 32)), 4.5),
    ],
)
def test_the_constant_of_each_layer(layer, constant):
    model = nn.Sequential(layer, nn.Flatten()).eval()
    computed = layer_constants(Network(model, torch.zeros(1, 2, 4, 4)))[-1]
    assert computed.item() == pytest.approx(constant, rel=1e-6)
    assert computed >= constant * (1 - 1e-7)  # weights are float32


@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_model_s_margin_is_exact(classes):
    model = linear_model((1, 2, 3), classes)
    batch = interior_batch(model, (1, 2, 3), 20)
    for eps in (0.01, 0.1):
        certificate = Lipschitz()(model, batch, ThreatModel("L2", eps), generator=GENERATOR)
        exact = exact_margin(model, batch, ThreatModel("L2", eps))
        assert torch.allclose(certificate.margins.min(dim=1).values, exact, atol=1e-5)
        assert torch.equal(certificate.certified, exact > 0)


def test_radius_is_where_the_margin_ends_and_at_most_eps():
    model = linear_model((1, 2, 3), 3)
    batch = interior_batch(model, (1, 2, 3), 20)
    far = Lipschitz()(model, batch, ThreatModel("L2", 100.0), generator=GENERATOR)
    for k, radius in enumerate(far.radius.tolist()):
        one = Batch(batch.x[[k]], batch.y[[k]], batch.index[[k]])
        left = exact_margin(model, one, ThreatModel("L2", radius * (1 + 2 * TOLERANCE)))
        assert torch.allclose(left, far.tolerance[[k]].double(), atol=1e-6)  # what rounding may take
    assert far.tolerance.max() < 1e-3
    eps = far.radius.median().expand(20).clone()
    eps[:5] = far.radius[:5] / 2
    near = Lipschitz()(model, batch, ThreatModel("L2", eps), generator=GENERATOR)
    assert torch.allclose(near.radius, far.radius.minimum(eps), atol=1e-4)
    assert (near.radius <= eps).all()
    assert near.certified[:5].all()


@pytest.mark.parametrize(("last", "constant"), [(nn.Identity(), 2.0), (scaled(0.7, 4), 1.4)])
def test_margins_with_and_without_a_linear_layer_at_the_end(last, constant):
    model = nn.Sequential(nn.Flatten(), scaled(2.0, 4), nn.ReLU(), last).eval()
    constants = margin_constants(Network(model, torch.zeros(1, 1, 2, 2)), torch.arange(4))
    assert torch.allclose(constants, math.sqrt(2) * constant * (1 - torch.eye(4, dtype=torch.float64)))


def test_no_slope_of_a_margin_is_above_its_constant():
    torch.manual_seed(0)
    block = Residual(nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 3, 3, padding=1)))
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), block, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 4)
    )
    model.eval()
    x = torch.rand(50, 1, 6, 6)
    constants = margin_constants(Network(model, x[:1]), torch.arange(4))
    slopes = torch.func.vmap(torch.func.jacrev(lambda image: model(image[None])[0]))(x).flatten(2)
    steepest = torch.linalg.vector_norm(slopes[:, :, None] - slopes[:, None], dim=3).amax(dim=0)
    assert (steepest <= constants).all()
    assert (steepest > 0.05 * constants).sum() == 12


def test_a_constant_model():
    model = linear_model((1, 1, 2), 3)
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor([1.0, 0.0, 1.0])
    batch = Batch(torch.rand(2, 1, 1, 2), torch.tensor([0, 1]), torch.arange(2))
    certificate = Lipschitz()(model, batch, ThreatModel("L2", 0.5), generator=GENERATOR)
    assert not certificate.certified.any()  # a tie, and an error
    model[1].bias.data = torch.tensor([1.0, 0.0, 0.5])
    certificate = Lipschitz()(model, batch, ThreatModel("L2", 0.5), generator=GENERATOR)
    assert certificate.certified.tolist() == [True, False]
