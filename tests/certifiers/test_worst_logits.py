"""Worst logits by intervals and by linear bounds: sound, reached by a linear model, and with the right gradient."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core.threat import ThreatModel
from bench.testing.contracts import DefenseContract
from certifiers.input_regions import region_of
from certifiers.linear_bounds import BoundedNetwork
from certifiers.network import Network
from certifiers.worst_logits import interval_worst_logits, linear_worst_logits

EPS = {"Linf": 0.05, "L2": 0.2}


def crown_ibp(model, x, y, threat):
    return linear_worst_logits(model, x, y, threat, relaxation="adaptive", intermediate="ibp")


def mixed(model, x, y, threat):
    return linear_worst_logits(model, x, y, threat, relaxation="adaptive", intermediate="ibp", interval_share=0.3)


KINDS = [interval_worst_logits, linear_worst_logits, crown_ibp, mixed]


def network():
    """A convolution and two linear layers, in double precision."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(10, 5)).double()


def images(n=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (n,), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_point_has_worse_logits(norm, kind):
    model, (x, y) = network(), images()
    threat = ThreatModel(norm, EPS[norm])
    worst = kind(model, x, y, threat)
    rows = torch.arange(len(y))
    assert (worst[rows, y] == 0).all()
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        logits = model(threat.random_start(x, generator))
        assert (logits - logits[rows, y][:, None] <= worst + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_linear_model_they_are_reached(kind):
    x = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double())
    weight = model[1].weight
    worst = kind(model, x, torch.tensor([1]), ThreatModel("Linf", 0.1))[0]
    for j in (0, 2):
        slope = weight[j] - weight[1]
        value = (x.flatten() @ slope + model[1].bias[j] - model[1].bias[1] + 0.1 * slope.abs().sum()).item()
        assert worst[j].item() == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_a_mixture_has_its_share_of_both():
    model, (x, y) = network(), images()
    threat = ThreatModel("Linf", EPS["Linf"])
    wanted = 0.3 * interval_worst_logits(model, x, y, threat) + 0.7 * crown_ibp(model, x, y, threat)
    assert torch.allclose(mixed(model, x, y, threat), wanted, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_gradient_is_that_of_finite_differences(norm, kind):
    model, (x, y) = network(), images()

    def loss():
        return cross_entropy(kind(model, x, y, ThreatModel(norm, EPS[norm])), y)

    weights = list(model.parameters())
    gradients = torch.autograd.grad(loss(), weights)
    generator = torch.Generator().manual_seed(3)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        ends = []
        with torch.no_grad():
            for step in (1, -2, 1):
                weight += step * 1e-6 * direction
                ends.append(loss())
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, abs=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_units_that_are_known_to_be_stable_need_no_gradient(norm):
    model, (x, y) = network(), images()
    region, recorded = region_of(x, ThreatModel(norm, 3 * EPS[norm])), Network(model, x[:1])
    with torch.no_grad():
        known = BoundedNetwork(recorded, "parallel").preactivation_bounds(region)
    low, high = known[recorded.activations[-1]]
    assert 0 < ((low < 0) & (high > 0)).double().mean() < 1
    whole, part = (BoundedNetwork(recorded, "parallel").bound(region, y, each) for each in (None, known))
    assert torch.allclose(whole.margin, part.margin, atol=1e-12)
    ends = [(low.requires_grad, low.grad_fn is not None) for low, _ in part.preactivation.values()]
    assert ends == [(True, True)] * 2
    weights = list(model.parameters())
    both = (torch.autograd.grad(bounds.margin.square().sum(), weights, retain_graph=True) for bounds in (whole, part))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("kind", [interval_worst_logits, linear_worst_logits])
def test_bounds_see_batch_norm_in_eval_mode(kind):
    loop = DefenseContract().loop("ibp")
    batch, model = next(loop.shuffled()), loop.model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = kind(model, batch.x, batch.y, loop.threat)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(found, kind(model.eval(), batch.x, batch.y, loop.threat))
