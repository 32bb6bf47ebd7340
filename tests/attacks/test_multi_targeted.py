import pytest
import torch
from torch import nn

from attacks.multi_targeted import MultiTargeted
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.passes import AttackPasses, count_passes
from bench.core.threat import ThreatModel
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)


def run(attack, threat, model, batch):
    return attack(model, batch, threat, generator=seeds.generator(torch.device("cpu"), 0))


class Three(nn.Module):
    """As in reflected-loss.txt, section 4.3: only the class of the lowest logit can win. Here it takes eight pixels."""

    def forward(self, x):
        a, b = x.flatten(1)[:, 0], x.flatten(1)[:, 1:].sum(dim=1)
        return torch.stack([2 * a, a, 2.7 * b], dim=1)


@pytest.mark.parametrize(("classes", "norm", "eps"), [
    (2, "Linf", 0.1), (2, "L2", 0.3), (5, "Linf", 0.03), (5, "L2", 0.09),
])  # fmt: skip
def test_breaks_exactly_the_examples_of_negative_margin(classes, norm, eps):
    model = linear_model(SHAPE, classes)
    batch, threat = interior_batch(model, SHAPE, 40), ThreatModel(norm, eps)
    exact = exact_margin(model, batch, threat)
    assert 5 <= (exact < 0).sum() <= 35
    clear = exact.abs() > 0.01 * exact.abs().max()
    wrong = model(run(MultiTargeted(), threat, model, batch)).argmax(dim=1) != batch.y
    assert torch.equal(wrong[clear], (exact < 0)[clear])


@pytest.mark.parametrize(("targets", "found"), [(1, 0), (2, 2)])
def test_each_class_is_tried_in_the_order_of_the_logits(targets, found):
    batch = Batch(torch.eye(9)[:1].reshape(1, 1, 3, 3), torch.tensor([0]), torch.tensor([0]))
    x_adv = run(MultiTargeted(targets=targets), ThreatModel("Linf", 0.1), Three(), batch)
    assert Three()(x_adv).argmax().item() == found


def test_every_example_keeps_its_own_target_when_others_are_broken():
    """The first example of each pair falls at once; the target of the second must not become the first's."""
    x = torch.tensor([[0.55, 0.5, 0.0], [0.3, 0.0, 0.9], [0.0, 0.55, 0.5], [0.9, 0.3, 0.0]]).reshape(4, 1, 1, 3)
    model = nn.Flatten()
    batch = Batch(x, torch.tensor([0, 2, 1, 0]), torch.arange(4))
    x_adv = run(MultiTargeted(targets=1, steps=40), ThreatModel("Linf", 0.1), model, batch)
    delta = (x_adv - x).flatten(1)
    assert (model(x_adv).argmax(dim=1) != batch.y).tolist() == [True, False, True, False]
    # z_target - z_y moves the two pixels of the target and the label, and no other
    assert torch.allclose(delta[1, [0, 2]], torch.tensor([0.1, -0.1]), atol=1e-6)
    assert torch.allclose(delta[3, [0, 1]], torch.tensor([-0.1, 0.1]), atol=1e-6)
    assert delta[1, 1].abs() < 0.1
    assert delta[3, 2].abs() < 0.1


def test_broken_examples_leave_and_the_others_pay_for_every_target():
    model = linear_model(SHAPE, 4)
    batch, threat = interior_batch(model, SHAPE, 20), ThreatModel("Linf", 0.02)
    broken = exact_margin(model, batch, threat) < 0
    assert 0 < broken.sum() < 20
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        run(MultiTargeted(steps=8, restarts=2), threat, model, batch)
    spent = seen.total()
    # a pass for the order, 3 targets of 2 restarts of 8 steps both ways, and one look after all of the 6 but the last
    assert (spent[~broken] == 1 + 3 * 2 * 8 * 2 + 5).all()
    assert (spent[broken] < 1 + 3 * 2 * 8 * 2 + 5).all()


def test_each_example_may_have_its_own_eps():
    model, eps = linear_model(SHAPE, 3), torch.tensor([0.001, 0.002, 0.003])
    batch, threat = interior_batch(model, SHAPE, 3), ThreatModel("Linf", eps)
    x_adv = run(MultiTargeted(), threat, model, batch)
    assert torch.allclose(threat.distance(x_adv, batch.x), eps.double(), atol=1e-6)
