import math

import pytest
import torch
from torch import nn

from bench.core.contracts import Batch
from bench.core.threat import ThreatModel
from certifiers.crown import FastLin
from certifiers.lipschitz import Lipschitz
from certifiers.pec import PEC
from tests.linear import exact_margin, interior_batch, linear_model

G = torch.Generator()


def distances(model, batch, norm):
    """Exact distances to the boundary of a linear model if no ball meets the box, computed in float64."""
    weight = model[1].weight.detach().double()
    logits = batch.x.double().flatten(1) @ weight.T
    gap = logits.gather(1, batch.y[:, None]) - logits
    slope = torch.linalg.vector_norm(weight[batch.y][:, None] - weight[None], ord={"Linf": 1, "L2": 2}[norm], dim=2)
    return (gap / slope).nan_to_num(math.inf).amin(dim=1).float()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_linear_model_is_certified_up_to_its_boundary(norm):
    model = linear_model((1, 5, 5), 4)
    batch = interior_batch(model, (1, 5, 5), 200)
    exact = distances(model, batch, norm)
    eps = float(exact.sort().values[99:101].mean())
    certificate = PEC()(model, batch, ThreatModel(norm, eps), generator=G)
    assert torch.equal(certificate.certified, exact > eps)
    torch.testing.assert_close(certificate.radius, exact.clamp(max=eps), rtol=1e-4, atol=1e-5)
    assert (certificate.radius <= exact.clamp(max=eps)).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_whole_threat_model_is_certified(norm):
    """A boundary that is farther than eps, but within the tolerance with which a threat model contains points."""
    model = linear_model((1, 2, 2), 2)
    batch, threat = interior_batch(model, (1, 2, 2), 20), ThreatModel(norm, 0.05)
    model, x = model.double(), batch.x.double()
    for certifier in (PEC(), *([Lipschitz()] if norm == "L2" else [])):
        for k in range(len(x)):
            one = Batch(x[[k]], batch.y[[k]], batch.index[[k]])
            model[1].bias.data.zero_()
            inside = exact_margin(model, one, ThreatModel(norm, 0.05 * (1 + 5e-7), None)).item()
            model[1].bias.data[batch.y[k]] -= inside  # now the margin is 0 there
            assert not certifier(model, one, threat, generator=G).certified.any()
            model[1].bias.data[batch.y[k]] += 1e-4
            assert certifier(model, one, threat, generator=G).certified.all()


def test_what_fast_lin_certifies_is_certified_and_the_rest_gets_a_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    x = torch.rand(100, 1, 4, 4)
    batch = Batch(x, model(x).argmax(dim=1), torch.arange(100))
    threat = ThreatModel("Linf", 0.05)
    whole, part = FastLin()(model, batch, threat, generator=G), PEC()(model, batch, threat, generator=G)
    torch.testing.assert_close(part.margins, whole.margins)
    assert torch.equal(part.certified, whole.certified)
    assert 10 < whole.certified.sum() < 90
    rest = part.radius[~part.certified]
    assert ((rest > 0) & (rest < 0.05)).float().mean() > 0.5
    smaller = FastLin()(model, batch, ThreatModel("Linf", 0.02), generator=G)
    assert (part.radius > 0.02)[~part.certified].any(), "no radius to check the next line with"
    assert smaller.certified[part.radius > 0.02].all()  # bounds over less are tighter


def test_under_l2_the_box_helps():
    """A boundary that is nearer than eps only outside the box: fast-lin's ball does not see the box."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([0.0, 0.1]))
    x = torch.tensor([0.0, 0.5]).reshape(1, 1, 1, 2)  # only the second pixel can fall, by 0.4 to the boundary
    batch, threat = Batch(x, torch.tensor([0]), torch.arange(1)), ThreatModel("L2", 0.35)
    assert not FastLin()(model, batch, threat, generator=G).certified.any()
    certificate = PEC()(model, batch, threat, generator=G)
    assert certificate.certified.all()
    assert certificate.radius.item() == pytest.approx(0.35)
    wide = PEC()(model, batch, ThreatModel("L2", 0.45), generator=G)
    assert not wide.certified.any()
    assert wide.radius.item() == pytest.approx(0.4, rel=1e-4)


def test_a_wrong_example_has_no_radius():
    model = linear_model((1, 3, 3), 3)
    batch = interior_batch(model, (1, 3, 3), 20)
    wrong = Batch(batch.x, (batch.y + 1) % 3, batch.index)
    certificate = PEC()(model, wrong, ThreatModel("Linf", 0.05), generator=G)
    assert not certificate.certified.any()
    assert (certificate.radius == 0).all()


def test_every_example_has_its_own_eps():
    model = linear_model((1, 5, 5), 4)
    batch = interior_batch(model, (1, 5, 5), 50)
    eps = torch.linspace(0.001, 0.1, 50, dtype=torch.float64)
    certificate = PEC()(model, batch, ThreatModel("Linf", eps), generator=G)
    assert torch.equal(certificate.certified, exact_margin(model, batch, ThreatModel("Linf", eps[:, None])) > 0)
    torch.testing.assert_close(
        certificate.radius.double(), distances(model, batch, "Linf").double().minimum(eps), rtol=1e-4, atol=1e-6
    )
