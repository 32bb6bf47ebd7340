import pytest
import torch
from torch import nn

from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.crown import FastLin
from certifiers.eps_search import EpsSearch
from tests.certifiers.test_pec import distances
from tests.linear import interior_batch, linear_model

G = torch.Generator()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("method", ["pec", "bisection", "newton"])
def test_it_finds_the_distance_of_a_linear_model(norm, method):
    model = linear_model((1, 5, 5), 4)
    batch = interior_batch(model, (1, 5, 5), 40)
    exact = distances(model, batch, norm)
    eps = float(exact.quantile(0.8)) / 4
    certificate = EpsSearch(method=method, precision=1e-5)(model, batch, ThreatModel(norm, eps), generator=G)
    assert (certificate.radius <= exact + 1e-6).all()
    below = exact < 4 * eps
    torch.testing.assert_close(certificate.radius[below], exact[below], rtol=0, atol=1.1e-5)
    assert (certificate.radius[~below] > 4 * eps - 1.1e-5).all()
    assert torch.equal(certificate.certified, exact >= eps)


def relu_net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 60), nn.ReLU(), nn.Linear(60, 3)).eval()
    x = torch.rand(60, 1, 4, 4)
    return model, Batch(x, model(x).argmax(dim=1), torch.arange(60))


def test_bisection_takes_the_number_of_steps_that_halving_needs():
    model, batch = relu_net()
    with torch.no_grad():
        result = EpsSearch(method="bisection", high=0.4).search(model, batch.x, batch.y, ThreatModel("Linf", 0.1))
    assert (result.bounds == 12).all()  # 0.4 / 2^12 < 1e-4


def test_the_envelope_saves_bounds_and_finds_the_same():
    model, batch = relu_net()
    threat = ThreatModel("Linf", 0.1)
    with torch.no_grad():
        plain = EpsSearch(method="bisection").search(model, batch.x, batch.y, threat)
        result = EpsSearch().search(model, batch.x, batch.y, threat)
    torch.testing.assert_close(result.low, plain.low, rtol=0, atol=2.1e-4)
    assert result.bounds.float().mean() < 0.9 * plain.bounds.float().mean()


def test_newton_needs_few_bounds_and_finds_the_same():
    model, batch = relu_net()
    threat = ThreatModel("Linf", 0.1)
    with torch.no_grad():
        plain = EpsSearch(method="bisection").search(model, batch.x, batch.y, threat)
        result = EpsSearch(method="newton").search(model, batch.x, batch.y, threat)
    torch.testing.assert_close(result.low, plain.low, rtol=0, atol=2.1e-4)
    assert result.bounds.float().mean() < 0.6 * plain.bounds.float().mean()
    assert not result.low.requires_grad


def test_what_it_ends_with_is_certified_and_more_is_not():
    model, batch = relu_net()
    with torch.no_grad():
        result = EpsSearch().search(model, batch.x, batch.y, ThreatModel("Linf", 0.1))
    inside = (result.low > 1e-3) & (result.high < 0.4)
    assert inside.sum() > 30
    rows = inside.nonzero().squeeze(1)
    some = Batch(batch.x[rows], batch.y[rows], batch.index[rows])
    for eps, wanted in ((result.low[rows] - 1e-6, True), (result.high[rows] + 1e-4, False)):
        assert (FastLin()(model, some, ThreatModel("Linf", eps), generator=G).certified == wanted).all()


def test_wrong_examples_are_not_searched():
    model, batch = relu_net()
    with torch.no_grad():
        result = EpsSearch().search(model, batch.x, (batch.y + 1) % 3, ThreatModel("Linf", 0.1))
    assert (result.bounds == 0).all()
    assert (result.low == 0).all()


def test_eps_itself_is_certified_where_fast_lin_does():
    model, batch = relu_net()
    with torch.no_grad():
        ends = EpsSearch().search(model, batch.x, batch.y, ThreatModel("Linf", 0.1)).low
    threat = ThreatModel("Linf", ends + 5e-6)  # so near the largest that the search may end around it
    wanted = FastLin()(model, batch, threat, generator=G).certified
    certificate = EpsSearch(high=0.4)(model, batch, threat, generator=G)
    assert (certificate.certified >= wanted).all()


def test_settings_that_make_no_sense():
    for options in ({"precision": 0.0}, {"high": -1.0}):
        with pytest.raises(UserError, match="must be positive"):
            EpsSearch(**options)
