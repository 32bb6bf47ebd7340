import pytest
import torch
from torch import nn

from bench.core.contracts import Batch
from bench.core.threat import ThreatModel
from certifiers.alpha_crown import AlphaCrown
from certifiers.crown import Crown, FastLin
from certifiers.linear_bounds import intersection

G = torch.Generator()


def case(activation=nn.ReLU):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), activation(), nn.Flatten(), nn.Linear(64, 20), activation(), nn.Linear(20, 3)
    ).eval()
    with torch.no_grad():  # sharper than fresh weights, and no class ahead everywhere
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.dim() > 1 else 0)
    x = torch.rand(60, 1, 4, 4)
    return model, Batch(x, model(x).argmax(dim=1), torch.arange(60))


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh])
@pytest.mark.parametrize("norm", ["Linf", pytest.param("L2", marks=pytest.mark.slow)])
def test_it_is_never_below_crown_and_fast_lin(activation, norm):
    model, batch = case(activation)
    threat = ThreatModel(norm, 0.06 if norm == "Linf" else 0.2)
    margins = AlphaCrown(steps=5)(model, batch, threat, generator=G).margins
    for other in (FastLin(), Crown(), Crown(relaxation="tight")):
        assert (margins >= other(model, batch, threat, generator=G).margins - 1e-5).all()


def test_the_tightest_limits_are_taken():
    one = torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, 2.0]])
    two = torch.tensor([[-2.0, -1.0]]), torch.tensor([[3.0, 1.0]])
    low, high = intersection([{4: one}, {4: two}])[4]
    assert (low.tolist(), high.tolist()) == ([[-1.0, -1.0]], [[1.0, 1.0]])
    assert intersection([{}, {}]) == {}


@pytest.mark.slow
def test_steps_certify_more():
    model, batch = case()
    threat = ThreatModel("Linf", 0.1)
    crown = Crown()(model, batch, threat, generator=G)
    few = AlphaCrown(steps=1)(model, batch, threat, generator=G)
    many = AlphaCrown(steps=40)(model, batch, threat, generator=G)
    still_open = (few.margins <= 0) & (many.margins <= 0)
    assert still_open.sum() > 5
    assert (many.margins >= few.margins - 1e-5)[still_open].all()
    assert (many.margins - crown.margins)[still_open].mean() > 1.2 * (few.margins - crown.margins)[still_open].mean()
    assert many.certified.sum() > crown.certified.sum()


def test_the_bound_holds():
    """Corners and random points of the region never have a smaller margin."""
    model, batch = case()
    threat = ThreatModel("Linf", 0.08)
    margins = AlphaCrown(steps=40)(model, batch, threat, generator=G).margins
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        sign = torch.rand(batch.x.shape, generator=generator).sub(0.5).sign()
        logits = model((batch.x + 0.08 * sign).clamp(0, 1)).detach()
        lead = logits.gather(1, batch.y[:, None]) - logits
        lead = lead.scatter(1, batch.y[:, None], torch.inf)
        assert (lead >= margins - 1e-5).all()
