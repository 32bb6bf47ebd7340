"""Between two classes a smoothed linear classifier is the classifier itself, and its exact radius the distance."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from bench.core import seeds
from bench.core.clopper_pearson import lower_bound
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.smoothing import ABSTAIN, Smoothing

SHAPE, SIGMA = (1, 1, 3), 0.25
NORMAL = torch.tensor([2.0, -1.0, 2.0]) / 3  # of the hyperplane between the classes, of length one


@pytest.fixture
def model():
    """Class 0 where NORMAL . (x - 1/2) is positive; the logits' scale must not matter."""
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([NORMAL, -NORMAL]) * 7)
        linear.bias.copy_(torch.tensor([-0.5, 0.5]) * 7 * NORMAL.sum())
    return nn.Sequential(nn.Flatten(), linear)


def at_distance(distance, y=0):
    """Points so far on the side of class 0."""
    distance = torch.as_tensor(distance)
    x = (0.5 + distance[:, None] * NORMAL).reshape(-1, *SHAPE)
    return Batch(x, torch.full((len(x),), y), torch.arange(len(x)))


def certify(model, batch, eps=0.2, seed=0, **options):
    certifier = Smoothing(sigma=SIGMA, **options)
    return certifier(model, batch, ThreatModel("L2", eps), generator=seeds.generator(torch.device("cpu"), seed))


def test_radius_is_below_the_distance_and_near_it(model):
    distance = torch.linspace(0.05, 0.45, 9)
    certificate = certify(model, at_distance(distance), n=40_000)
    assert (certificate.radius <= distance).all()
    assert (certificate.radius >= distance - 0.06 * SIGMA).all()
    assert torch.equal(certificate.certified, certificate.radius >= 0.2)
    assert (certificate.prediction == 0).all()


def test_more_samples_bring_it_nearer(model):
    few, many = (certify(model, at_distance([0.3] * 8), n=n).radius.mean() for n in (100, 10_000))
    assert few < many


def test_the_noise_has_the_size_sigma(model):
    """What decides is the distance in units of sigma: twice the noise, and the share of the class is another."""
    batch = at_distance([0.25] * 4)
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.1, 0.25, 0.5):
        counts = Smoothing(sigma=sigma).sample_under_noise(model, batch.x, 10_000, 2, generator)
        expected = torch.special.ndtr(torch.tensor(0.25 / sigma))
        assert torch.allclose(counts[:, 0] / 10_000, expected.expand(4), atol=0.015)


def test_abstains_on_the_boundary(model):
    certificate = certify(model, at_distance([0.0] * 20), alpha=1e-5)
    assert (certificate.prediction == ABSTAIN).all()
    assert (certificate.radius == 0).all()
    assert not certificate.certified.any()


def test_a_wrong_answer_is_no_certificate(model):
    certificate = certify(model, at_distance([0.3], y=1))
    assert certificate.prediction.tolist() == [0]
    assert certificate.radius.tolist() == [0]
    assert not certificate.certified.any()


def test_each_example_has_its_eps(model):
    certificate = certify(model, at_distance([0.3, 0.3]), eps=torch.tensor([0.2, 0.31]))
    assert certificate.certified.tolist() == [True, False]


@pytest.mark.parametrize("n", [1, 10, 200])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.7, 0.99])
def test_the_bound_covers_as_often_as_it_says(n, p):
    k = np.arange(n + 1)
    for alpha in (0.001, 0.1):
        assert binom.pmf(k, n, p)[lower_bound(k, n, alpha) > p].sum() <= alpha


def test_the_radius_is_wrong_as_seldom_as_it_says(model):
    """With alpha 0.2 about a fifth of 400 radii may be too long; 100 would be a chance of one in a hundred."""
    too_long = (certify(model, at_distance([0.3] * 400), n=200, alpha=0.2).radius > 0.3).sum()
    assert 40 < too_long < 100


def test_no_pass_is_larger_than_the_batch_and_every_sample_counts(model):
    sizes = []
    model.register_forward_hook(lambda *call: sizes.append(len(call[2])))
    smoothing = Smoothing(batch=7)
    counts = smoothing.sample_under_noise(model, at_distance([0.1, 0.2, 0.3]).x, 10, 2, torch.Generator())
    assert sizes == [7, 7, 7, 7, 2]
    assert counts.sum(dim=1).tolist() == [10, 10, 10]


def test_what_it_refuses(model):
    for wrong in ({"sigma": 0.0}, {"n": 0}, {"n0": -1}, {"batch": 0}, {"alpha": 0.0}, {"alpha": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Smoothing(**wrong)
    with pytest.raises(UserError, match="Linf"):
        Smoothing()(model, at_distance([0.1]), ThreatModel("Linf", 0.1), generator=torch.Generator())
