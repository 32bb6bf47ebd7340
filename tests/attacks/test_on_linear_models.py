import pytest
import torch

from attacks.ascent import ascend
from attacks.autoattack import AutoAttack
from attacks.fgsm import FGSM
from attacks.losses import margin
from attacks.pgd import PGD
from bench.core import seeds
from bench.core.passes import AttackPasses, count_passes
from bench.core.threat import ThreatModel
from tests.attacks.short_autoattack import FewQueries, shorten_autoattack
from tests.linear import exact_margin, interior_batch, linear_model

CPU = torch.device("cpu")
SHAPE = (1, 5, 5)


def attacked_margin(attack, threat, model, batch):
    x_adv = attack(model, batch, threat, generator=seeds.generator(CPU, 0))
    with torch.no_grad():
        return margin(model(x_adv), batch.y).double()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("start", [True, False])
def test_pgd_reaches_the_optimum_of_two_classes(norm, start):
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 20), ThreatModel(norm, 0.1)
    exact = exact_margin(model, batch, threat)
    found = attacked_margin(PGD(steps=40, random_start=start), threat, model, batch)
    robust = exact >= 0
    assert torch.allclose(found[robust], exact[robust], atol=1e-5)
    assert (found[~robust] < 0).all()  # these stay at their first wrong point


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fgsm_is_optimal_in_one_step(norm):
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 20), ThreatModel(norm, 0.05)
    found = attacked_margin(FGSM(), threat, model, batch)
    assert torch.allclose(found, exact_margin(model, batch, threat), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.03), ("L2", 0.09), ("L1", 0.2)])
def test_autoattack_breaks_exactly_the_examples_of_negative_margin(norm, eps, monkeypatch):
    shorten_autoattack(monkeypatch, FewQueries)
    model = linear_model(SHAPE, 5)
    batch, threat = interior_batch(model, SHAPE, 12), ThreatModel(norm, eps)
    exact = exact_margin(model, batch, threat)
    assert 3 <= (exact < 0).sum() <= 9
    clear = exact.abs() > 0.01 * exact.abs().max()
    found = attacked_margin(AutoAttack(), threat, model, batch)
    assert torch.equal((found < 0)[clear], (exact < 0)[clear])


def test_alpha_may_differ_from_example_to_example():
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 3), ThreatModel("Linf", 0.1)
    alpha = torch.tensor([0.0, 0.02, 0.05])
    for given in (alpha, lambda gradient: alpha.to(gradient.dtype)):
        x_adv = ascend(model, batch.x, batch.y, threat=threat, steps=1, alpha=given, start=batch.x)
        assert torch.allclose(threat.distance(x_adv, batch.x), alpha.double(), atol=1e-7)


def one_step(model, x, y, threat, step=None):
    """The point after one step of size 0.5, and the gradient of this step."""
    gradients = []

    def alpha(gradient):
        gradients.append(gradient)
        return 0.5

    return ascend(model, x, y, threat=threat, steps=1, alpha=alpha, start=x, step=step), gradients[0]


def test_a_gradient_is_of_each_examples_own_loss():
    model = linear_model(SHAPE, 3)
    batch, threat = interior_batch(model, SHAPE, 4), ThreatModel("Linf", 0.1)
    _, together = one_step(model, batch.x, batch.y, threat)
    for i in range(4):
        one = slice(i, i + 1)
        _, alone = one_step(model, batch.x[one], batch.y[one], threat)
        assert torch.allclose(together[one], alone, atol=1e-6)


@pytest.mark.parametrize("step", ["sign", "l2", "raw"])
def test_steps_go_where_they_are_named_after(step):
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 4), ThreatModel("Linf", 10.0, box=None)
    x_adv, gradient = one_step(model, batch.x, batch.y, threat, step)
    norm = gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    wanted = {"sign": gradient.sign(), "l2": gradient / norm, "raw": gradient}[step]
    assert torch.allclose(x_adv - batch.x, 0.5 * wanted, atol=1e-6)


def test_restarts_attack_only_unbroken_examples():
    model = linear_model(SHAPE, 2)
    batch, threat = interior_batch(model, SHAPE, 20), ThreatModel("Linf", 0.04)
    broken = exact_margin(model, batch, threat) < 0
    assert 0 < broken.sum() < 20
    with count_passes(model, AttackPasses(batch.x, batch.y, threat)) as seen:
        PGD(steps=10, restarts=2)(model, batch, threat, generator=seeds.generator(CPU, 0))
    assert (seen.total()[~broken] > 21).all()  # a second run
    assert (seen.total()[broken] <= 21).all()  # one run, and a look afterwards
