import pytest
import torch
from torch import nn

from attacks.bim import BIM
from attacks.mi_fgsm import MIFGSM
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)


class Hill(nn.Module):
    """Two classes of a one-pixel image: the second's logit is highest at x = 0.6, and lower on both sides."""

    def forward(self, x):
        logit = -(x.flatten(1) - 0.6).abs()
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def run(attack, threat, model, batch):
    return attack(model, batch, threat, generator=seeds.generator(torch.device("cpu"), 0))


def one_pixel(value):
    return Batch(torch.full((1, 1, 1, 1), value), torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.3)])
@pytest.mark.parametrize("attack", [BIM, MIFGSM])
def test_breaks_exactly_the_examples_of_negative_margin(attack, norm, eps):
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 40), ThreatModel(norm, eps)
    exact = exact_margin(model, batch, threat)
    assert 5 <= (exact < 0).sum() <= 35
    clear = exact.abs() > 1e-4
    wrong = model(run(attack(), threat, model, batch)).argmax(dim=1) != batch.y
    assert torch.equal(wrong[clear], (exact < 0)[clear])


@pytest.mark.parametrize("attack", [BIM, MIFGSM])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("steps", "taken"), [(1, 1), (4, 4), (10, 10)])
def test_the_default_step_is_eps_over_steps(attack, norm, steps, taken):
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 5), ThreatModel(norm, 0.1)
    x_adv = run(attack(steps=steps), threat, model, batch)
    assert torch.allclose(threat.distance(x_adv, batch.x), torch.full((5,), 0.1, dtype=torch.float64), atol=1e-6)
    x_adv = run(attack(steps=steps, alpha=0.01), threat, model, batch)
    assert torch.allclose(threat.distance(x_adv, batch.x), torch.full((5,), 0.01 * taken).double(), atol=1e-6)


@pytest.mark.parametrize(("attack", "options", "expected"), [
    # 0.5 -> 0.58 -> 0.66 is over the top; from there the gradient points back, -1
    (BIM, {}, [0.58, 0.66, 0.58, 0.66]),
    (MIFGSM, {"decay": 0.0}, [0.58, 0.66, 0.58, 0.66]),
    (MIFGSM, {"decay": 1.0}, [0.58, 0.66, 0.74, 0.74]),  # momentum 1, 2, 1, 0
    (MIFGSM, {"decay": 0.6}, [0.58, 0.66, 0.58, 0.66]),  # momentum 1, 1.6, -0.04, 0.976
    (MIFGSM, {"decay": 0.7}, [0.58, 0.66, 0.74, 0.66]),  # momentum 1, 1.7, 0.19, -0.867
])  # fmt: skip
def test_iterates_by_hand(attack, options, expected):
    threat = ThreatModel("Linf", 0.4)
    for steps, place in enumerate(expected, start=1):
        x_adv = run(attack(steps=steps, alpha=0.08, **options), threat, Hill(), one_pixel(0.5))
        assert x_adv.item() == pytest.approx(place, abs=1e-6)


def test_momentum_under_l2_by_hand():
    """A kink between two pixels: gradients (3, 1) and then (-1, 1), of L1 norms 4 and 2, added up."""

    class Kink(nn.Module):
        def forward(self, x):
            a, b = x.flatten(1).unbind(dim=1)
            return torch.stack([torch.zeros_like(a), torch.where(a < 0.55, 3 * a + b, b - a)], dim=1)

    batch = Batch(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]), torch.tensor([0]))
    x_adv = run(MIFGSM(steps=2, alpha=0.1), ThreatModel("L2", 0.4), Kink(), batch)
    first, second = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])  # (3, 1) / 4 + (-1, 1) / 2, times 4
    expected = 0.5 + 0.1 * first / first.norm() + 0.1 * second / second.norm()
    assert torch.allclose(x_adv.flatten(), expected, atol=1e-6)


@pytest.mark.parametrize("attack", [BIM, MIFGSM])
def test_the_last_iterate_is_returned(attack):
    """Steps of 0.1 from 0.55: after the first the point is over the top, after the second below it again."""
    options = {"decay": 0.0} if attack is MIFGSM else {}
    x_adv = run(attack(steps=2, alpha=0.1, **options), ThreatModel("Linf", 0.3), Hill(), one_pixel(0.55))
    assert x_adv.item() == pytest.approx(0.55, abs=1e-6)


@pytest.mark.parametrize("attack", [BIM, MIFGSM])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_constant_model_moves_nothing(attack, norm):
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :2]

    batch = Batch(torch.full((2, 1, 1, 2), 0.5), torch.tensor([0, 1]), torch.arange(2))
    assert torch.equal(run(attack(), ThreatModel(norm, 0.1), Constant(), batch), batch.x)


@pytest.mark.parametrize("attack", [BIM, MIFGSM])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_each_example_may_have_its_own_eps(attack, norm):
    model, eps = linear_model(SHAPE, 2), torch.tensor([0.02, 0.05, 0.1])
    batch, threat = interior_batch(model, SHAPE, 3), ThreatModel(norm, eps)
    x_adv = run(attack(), threat, model, batch)
    assert torch.allclose(threat.distance(x_adv, batch.x), eps.double(), atol=1e-6)


def test_decay_is_not_negative():
    with pytest.raises(UserError, match="decay is -1"):
        MIFGSM(decay=-1.0)
