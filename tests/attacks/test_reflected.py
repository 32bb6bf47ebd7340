import math

import pytest
import torch
from torch import nn

from attacks.ascent import ascend
from attacks.reflected import RBIM, RFGSM, RPGD
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import AttackPasses, count_passes
from bench.core.threat import ThreatModel
from bench.testing.contracts import tiny_batch, tiny_model
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)
ATTACKS = [
    (RFGSM, {}),
    (RBIM, {}),
    (RPGD, {}),
    (RPGD, {"step": "l2", "alpha": 0.02, "decay": 1.0}),
    (RPGD, {"step": "auto", "alpha": 0.02, "decay": 0.5}),
]


def run(attack, threat, model, batch):
    return attack(model, batch, threat, generator=seeds.generator(torch.device("cpu"), 0))


@pytest.mark.parametrize(("attack", "options"), ATTACKS)
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.3)])
def test_breaks_exactly_the_examples_of_negative_margin(attack, options, norm, eps):
    if norm == "Linf" and options.get("step") == "l2":
        pytest.skip("not the steepest step: it need not reach the corner")
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 40), ThreatModel(norm, eps)
    exact = exact_margin(model, batch, threat)
    assert 5 <= (exact < 0).sum() <= 35
    clear = exact.abs() > 1e-3
    wrong = model(run(attack(**options), threat, model, batch)).argmax(dim=1) != batch.y
    assert torch.equal(wrong[clear], (exact < 0)[clear])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_with_two_classes_and_directions_it_is_the_cross_entropys_attack(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 20), nn.ReLU(), nn.Linear(20, 2))
    batch, threat = interior_batch(model, SHAPE, 20), ThreatModel(norm, 0.01)
    plain = ascend(model, batch.x, batch.y, threat=threat, steps=10, alpha=0.001, start=batch.x)
    assert torch.allclose(run(RBIM(), threat, model, batch), threat.project(plain, batch.x), atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_raw_steps_of_many_classes_are_a_loop_written_by_hand(norm):
    model, whole = tiny_model().eval(), tiny_batch()
    batch = Batch(whole.x[1:], whole.y[1:], whole.index[1:])
    threat = ThreatModel(norm, 0.05 if norm == "Linf" else 0.2)
    x = batch.x
    for t in range(25):
        x = x.detach().requires_grad_()
        logits = model(x)
        assert (logits.argmax(dim=1) == batch.y).all()  # else an example would stay
        others = [[z for j, z in enumerate(row) if j != y] for row, y in zip(logits, batch.y.tolist(), strict=True)]
        log_p = sum(max(rest) - row.logsumexp(dim=0) for rest, row in zip(others, logits, strict=True))
        (gradient,) = torch.autograd.grad(log_p, x)
        x = threat.project(x + 0.3 * 0.5 ** (t // 10) * gradient, batch.x)
    found = run(RPGD(steps=25, alpha=0.3, decay=0.5, decay_every=10), threat, model, batch)
    assert not torch.allclose(found, batch.x, atol=1e-3)
    assert torch.allclose(found, x, atol=1e-5)


def test_the_schedule_by_hand():
    """One pixel and two classes with margin z = 4 - x: each step is of size alpha sigmoid(z), the slope of l_-."""

    class Slope(nn.Module):
        def forward(self, x):
            z = 4 - x.flatten(1)
            return torch.cat([z, torch.zeros_like(z)], dim=1)

    batch = Batch(torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([0]))
    x = 0.0
    for size in (0.8, 0.8, 0.4, 0.4, 0.2):
        x += size / (1 + math.exp(x - 4))
    attack = RPGD(steps=5, alpha=0.8, decay=0.5, decay_every=2)
    assert run(attack, ThreatModel("Linf", 9.0, box=None), Slope(), batch).item() == pytest.approx(x, abs=1e-5)


def test_the_greedy_choice_fails_where_the_paper_says_so():
    class Three(nn.Module):  # W = [2 e1, e1, 10 e2]
        def forward(self, x):
            a, b = x.flatten(1).unbind(dim=1)
            return torch.stack([2 * a, a, 10 * b], dim=1)

    batch = Batch(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0]), torch.tensor([0]))
    x_adv = run(RPGD(), ThreatModel("L2", 0.3), Three(), batch)
    assert Three()(x_adv).argmax().item() == 0
    assert Three()(torch.tensor([[[[1.0, 0.3]]]])).argmax().item() == 2  # though there is such a point


def test_broken_examples_cost_no_more_passes():
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 20), ThreatModel("Linf", 0.1)
    broken = exact_margin(model, batch, threat) < 0
    assert 0 < broken.sum() < 20
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        run(RPGD(steps=20), threat, model, batch)
    assert (seen.total()[broken] <= 2 * (2 + 1)).all()  # two looks, and one more at the start of the second stretch
    assert (seen.total()[~broken] > 2 * (2 + 1)).all()


@pytest.mark.parametrize("options", [{"decay": 0.0}, {"decay": -1.0}, {"decay_every": 0}])
def test_an_invalid_schedule_is_a_user_error(options):
    with pytest.raises(UserError, match="both must be positive"):
        RPGD(**options)


@pytest.mark.parametrize("step", ["auto", "raw"])
def test_each_example_may_have_its_own_eps(step):
    model, eps = linear_model(SHAPE, 2), torch.tensor([0.001, 0.002, 0.003])
    batch, threat = interior_batch(model, SHAPE, 3), ThreatModel("Linf", eps)
    alpha = 10.0 if step == "raw" else 0.01
    x_adv = run(RPGD(step=step, alpha=alpha), threat, model, batch)
    assert torch.allclose(threat.distance(x_adv, batch.x), eps.double(), atol=1e-6)
