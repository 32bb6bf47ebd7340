"""Training through interval bounds: the worst logits, their gradient, and the schedules of eps and kappa."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import defenses.ibp
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.testing.contracts import DefenseContract
from defenses.ibp import Config, worst_logits

EPS = {"Linf": 0.05, "L2": 0.2}


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


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_point_has_worse_logits(norm):
    model, (x, y) = network(), images()
    threat = ThreatModel(norm, EPS[norm])
    worst = worst_logits(model, x, y, threat)
    rows = torch.arange(len(y))
    assert (worst[rows, y] == 0).all()
    generator = torch.Generator().manual_seed(2)
    for _ in range(200):
        logits = model(threat.random_start(x, generator))
        assert (logits - logits[rows, y][:, None] <= worst + 1e-9).all()


def test_of_a_linear_model_they_are_reached():
    x = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double())
    weight = model[1].weight
    worst = worst_logits(model, x, torch.tensor([1]), ThreatModel("Linf", 0.1))[0]
    for j in (0, 2):
        slope = weight[j] - weight[1]
        value = (x.flatten() @ slope + model[1].bias[j] - model[1].bias[1] + 0.1 * slope.abs().sum()).item()
        assert worst[j].item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_gradient_is_that_of_finite_differences(norm):
    model, (x, y) = network(), images()

    def loss():
        return cross_entropy(worst_logits(model, x, y, ThreatModel(norm, EPS[norm])), y)

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


def test_eps_rises_and_kappa_falls_along_the_ramp(monkeypatch):
    loop = DefenseContract().loop("ibp", epochs="12", warm_up="0.25", ramp="0.25")
    batch = next(loop.shuffled())
    seen, losses = [], []

    def recorded(model, x, y, threat):
        seen.append(threat.eps)
        return torch.zeros(len(y), 10)  # whose cross entropy is log 10

    monkeypatch.setattr(defenses.ibp, "worst_logits", recorded)
    monkeypatch.setattr(loop, "update", losses.append)
    for loop.epoch in range(12):
        loop.defense.train_step(batch, loop)
    assert seen == pytest.approx([loop.eps * share for share in (1 / 3, 2 / 3, *[1] * 6)])
    clean, flat = losses[0].item(), torch.tensor(10.0).log().item()
    kappas = [1.0] * 4 + [5 / 6, 4 / 6] + [0.5] * 6
    # batch norm in train mode sees the same batch, so the clean loss stays what it was
    assert [each.item() for each in losses] == pytest.approx([k * clean + (1 - k) * flat for k in kappas])


def test_bounds_see_batch_norm_in_eval_mode():
    loop = DefenseContract().loop("ibp")
    batch, model = next(loop.shuffled()), loop.model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = worst_logits(model, batch.x, batch.y, loop.threat)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(found, worst_logits(model.eval(), batch.x, batch.y, loop.threat))


@pytest.mark.parametrize("settings", [{"kappa": 2}, {"warm_up": -1}, {"ramp": 0}])
def test_refuses_settings_without_a_meaning(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Config(**settings)


@pytest.mark.parametrize(("epochs", "said"), [
    (1, "the last of 1 epochs has 0% of eps"),
    (2, "eps rises at once in a training of 2 epochs"),
    (10, None),
    (30, None),
])  # fmt: skip
def test_a_ramp_that_is_too_short_is_warned_of(epochs, said):
    warnings = DefenseContract().loop("ibp", epochs=epochs).warnings
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
