import functools

import pytest
import torch
from torch import nn

from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.network import Network
from certifiers.non_uniform import BoxMargins, NonUniform

G = torch.Generator()


def two_pixels(weight, bias):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([weight, [0.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([bias, 0.0]))
    return model


@pytest.mark.slow
def test_the_largest_box_of_a_linear_model():
    """w1 e1 + w2 e2 = value at the image, and e1 e2 largest: half of the value to each pixel."""
    model = two_pixels([1.0, 4.0], -0.5)
    x = torch.full((1, 1, 1, 2), 0.5)  # value 0.5 + 2 - 0.5 = 2
    eps, uniform = boxes(model, x, steps=60)
    assert uniform.item() == pytest.approx(2 / 5, rel=1e-3)
    torch.testing.assert_close(eps.flatten(), torch.tensor([1.0, 0.25]), rtol=0.03, atol=0)


def boxes(model, x, **options):
    with torch.no_grad():
        return NonUniform(**options).boxes(model, x, model(x).argmax(dim=1))


def relu_net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
    with torch.no_grad():
        model[1].weight[:, :4] *= 0.1  # pixels that hardly matter
    return model, torch.rand(20, 1, 3, 3)


@functools.cache
def relu_boxes():
    model, x = relu_net()
    return model, x, model(x).argmax(dim=1), *boxes(model, x)


@pytest.mark.slow
def test_the_box_is_certified_and_larger_than_the_uniform_one():
    model, x, y, eps, uniform = relu_boxes()
    certified = uniform > 0
    assert certified.sum() > 10
    margin = BoxMargins(Network(model, x[:1]), x[certified], y[certified]).over(eps[certified])
    assert (margin > 0).all()
    assert (margin.amin(dim=1) >= 1e-3).float().mean() > 0.8
    volume = eps[certified].log().flatten(1).mean(dim=1).exp()
    assert (volume >= uniform[certified] * (1 - 1e-6)).all()
    assert (volume / uniform[certified]).mean() > 1.3
    assert (eps[certified].flatten(1)[:, :4].mean() > 2 * eps[certified].flatten(1)[:, 4:].mean()).all()


@pytest.mark.slow
def test_no_corner_of_a_box_is_misclassified():
    model, x, y, eps, _ = relu_boxes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        sign = torch.rand(x.shape, generator=generator).sub(0.5).sign()
        assert torch.equal(model(x + eps * sign).argmax(dim=1), y)


def test_misclassified_images_have_no_box_and_the_radius_is_the_smallest_eps():
    model, x = relu_net()
    x, few = x[:4], NonUniform(steps=2, inner=2, shrink=0.9)
    y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 3
    certificate = few(model, Batch(x, y, torch.arange(4)), ThreatModel("Linf", 0.01), generator=G)
    assert certificate.radius[0] == 0
    with torch.no_grad():
        eps, _ = few.boxes(model, x, y)
    assert (certificate.radius >= eps.flatten(1).amin(dim=1)).all()
    assert torch.equal(certificate.certified, certificate.radius >= 0.01)


def test_the_uniform_box_is_returned_if_no_box_reaches_the_margin():
    """The model's margin is below delta: only the search, which has no delta, certifies anything."""
    model = two_pixels([1.0, 4.0], -2.4995)
    x = torch.full((1, 1, 1, 2), 0.5)
    eps, uniform = boxes(model, x, steps=2, shrink=0.9)
    assert 0 < uniform.item() < 1e-4
    torch.testing.assert_close(eps.flatten(), uniform.expand(2))


@pytest.mark.slow
def test_a_batch_without_a_certified_image_has_no_box():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = torch.rand(3, 1, 2, 2)
    with torch.no_grad():
        eps, uniform = NonUniform().boxes(model, x, 1 - model(x).argmax(dim=1))
    assert not eps.any()
    assert not uniform.any()


def test_it_starts_at_the_largest_certified_multiple_of_a_direction():
    model = two_pixels([1.0, 4.0], -0.5)
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])  # with the value 2
    method, direction = NonUniform(), torch.tensor([[[3.0, 1.0]]])
    with torch.no_grad():
        start = method.multiple(BoxMargins(Network(model, x), x, y), direction, torch.tensor([0.4]))
        eps, _ = NonUniform(steps=1, inner=1).boxes(model, x, y, direction)
        plain, _ = NonUniform(steps=1, inner=1).boxes(model, x, y)
    torch.testing.assert_close(start.flatten(), torch.tensor([3.0, 1.0]) * 2 / 7, rtol=2e-3, atol=0)
    assert eps.prod() > 1.05 * plain.prod()  # 6 / 7 of a half to each pixel, against 0.4 for both


def test_an_example_does_not_depend_on_the_others():
    model, x, _, together, _ = relu_boxes()
    torch.testing.assert_close(together[3:4], boxes(model, x[3:4])[0], rtol=1e-3, atol=1e-5)


def test_settings_that_make_no_sense():
    for options in ({"lr": 0.0}, {"shrink": 1.0}, {"growth": 0.5}):
        with pytest.raises(UserError):
            NonUniform(**options)
