import pytest
import torch
from torch import nn

from attacks.ascent import WorstPoint, ascend, direction
from attacks.bim import BIM
from attacks.pgd import PGD
from attacks.step_sizes import decaying_steps
from bench.core import seeds
from bench.core.contracts import Attack, Batch
from bench.core.errors import CheckError, UserError
from bench.core.threat import ThreatModel
from bench.testing.contracts import tiny_batch, tiny_model
from tests.linear import interior_batch, linear_model

CPU = torch.device("cpu")


class Hill(nn.Module):
    """Two classes of a one-pixel image; the second wins only in the narrow band around x = 0.6."""

    def forward(self, x):
        logit = 0.05 - (x.flatten(1) - 0.6).abs()
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def test_the_first_misclassified_iterate_is_returned():
    batch = Batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), torch.tensor([0]))
    # steps of 0.1 from 0.5: 0.6 is wrong, and the last point, after an even number of steps, is 0.5 again
    attack = PGD(steps=2, alpha=0.1, random_start=False)
    x_adv = attack(Hill(), batch, ThreatModel("Linf", 0.2), generator=seeds.generator(CPU, 0))
    assert x_adv.item() == pytest.approx(0.6, abs=1e-6)


def test_the_point_after_the_last_step_counts():
    batch = Batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), torch.tensor([0]))
    attack = PGD(steps=1, alpha=0.1, random_start=False)
    assert attack(Hill(), batch, ThreatModel("Linf", 0.2), generator=seeds.generator(CPU, 0)).item() == pytest.approx(
        0.6, abs=1e-6
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_ascend_restores_the_mode_and_touches_no_gradient(mode):
    model = tiny_model().train()
    batch = tiny_batch()
    seen = []
    model.register_forward_hook(lambda *call: seen.append(call[0].training))
    ascend(model, batch.x, batch.y, threat=ThreatModel("Linf", 0.1), steps=2, alpha=0.1, start=batch.x, mode=mode)
    assert seen == [mode == "train"] * 2
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_eval_mode_leaves_the_batch_statistics():
    model = tiny_model().train()
    before = model[1].running_mean.clone()
    batch = tiny_batch()
    options = {"threat": ThreatModel("Linf", 0.1), "steps": 1, "alpha": 0.1, "start": batch.x}
    ascend(model, batch.x, batch.y, **options)
    assert torch.equal(before, model[1].running_mean)
    ascend(model, batch.x, batch.y, **options, mode="train")
    assert not torch.equal(before, model[1].running_mean)


def test_a_misclassified_point_is_worse_than_one_of_higher_cross_entropy():
    y = torch.tensor([0])
    worst = WorstPoint(torch.zeros(1, 1, 1, 1), y)
    worst.update(torch.full((1, 1, 1, 1), 1.0), torch.tensor([[1.0, 1.1, -9.0]]))  # wrong, by little
    worst.update(torch.full((1, 1, 1, 1), 2.0), torch.tensor([[0.0, -0.1, -0.1]]))  # right, with a higher cross entropy
    assert worst.point.item() == 1.0


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e20])
def test_a_step_along_the_gradient_has_length_one_however_small_the_gradient_is(size):
    gradient = size * torch.randn((4, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    gradient[3] = 0
    step = direction(gradient, "l2")
    assert torch.allclose(step.flatten(1).norm(dim=1), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-6)


class Ridge(nn.Module):
    """Two classes of one pixel: the second comes closest at 0.6, and never wins."""

    def forward(self, x):
        logit = -0.05 - (x.flatten(1) - 0.6).abs()
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def test_an_example_stops_when_its_iterates_cycle():
    batch = Batch(torch.full((2, 1, 1, 1), 0.5), torch.tensor([0, 0]), torch.arange(2))
    batch.x[1] = 0.05  # far from the ridge, it climbs to the end
    shown = []
    model = Ridge()
    model.register_forward_hook(lambda *call: shown.append(len(call[2])))
    options = {"threat": ThreatModel("Linf", 0.4), "steps": 8, "alpha": 0.04, "start": batch.x}
    found = ascend(model, batch.x, batch.y, **options, stop_when_misclassified=True)
    assert shown == [2, 2, 2, 2, 1, 1, 1, 1]  # 0.5, 0.54, 0.58, 0.62, and it would be 0.58 again
    there = ascend(model, batch.x, batch.y, **options)
    assert found[1] == there[1]
    assert found[0].item() == pytest.approx(0.62, abs=1e-6)


def test_an_attack_that_leaves_the_ball_is_projected_and_one_that_is_not_finite_refused():
    class Far(Attack):
        def perturb(self, model, batch, threat, *, generator):
            return batch.x + 5

    class Broken(Attack):
        def perturb(self, model, batch, threat, *, generator):
            return batch.x * float("nan")

    threat, batch = ThreatModel("Linf", 0.1), tiny_batch()
    x_adv = Far()(tiny_model(), batch, threat, generator=seeds.generator(CPU, 0))
    assert torch.equal(x_adv, threat.project(batch.x + 5, batch.x))
    with pytest.raises(CheckError, match="finite"):
        Broken()(tiny_model(), batch, threat, generator=seeds.generator(CPU, 0))


def test_an_attack_refuses_a_norm_it_does_not_have():
    threat = ThreatModel("L1", 1.0)
    with pytest.raises(UserError, match="L1"):
        PGD().check_fits(threat, (1, 8, 8), 10)
    with pytest.raises(UserError, match="L1"):
        PGD()(tiny_model(), tiny_batch(), threat, generator=seeds.generator(CPU, 0))


@pytest.mark.parametrize("option", ["steps", "restarts"])
def test_counts_are_at_least_one(option):
    with pytest.raises(UserError, match="at least 1"):
        PGD(**{option: 0})


def test_step_sizes_decay_in_stretches():
    assert list(decaying_steps(25, 10.0, 0.2, 10)) == [(10, 10.0), (10, 2.0), (5, pytest.approx(0.4))]
    assert list(decaying_steps(25, 10.0, 1.0, 10)) == [(25, 10.0)]


@pytest.mark.parametrize("attack", [PGD, BIM])
def test_an_attack_with_a_decay_takes_smaller_steps(attack):
    model, threat = linear_model((1, 4, 4), 3), ThreatModel("Linf", 0.3)
    batch = interior_batch(model, (1, 4, 4), 4)
    options = {"random_start": False} if attack is PGD else {}
    x_adv = attack(steps=4, alpha=0.001, decay=0.1, decay_every=2, **options)(
        model, batch, threat, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose((x_adv - batch.x).abs().amax(dim=(1, 2, 3)), torch.tensor(0.0022), atol=1e-6)


@pytest.mark.parametrize("options", [{"decay": 0.0}, {"decay_every": 0}])
def test_an_invalid_decay_is_a_user_error(options):
    for attack in (PGD, BIM):
        with pytest.raises(UserError, match="both must be positive"):
            attack(**options)
