import pytest
import torch
from torch import nn

from attacks.universal import Universal
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from tests.linear import exact_margin, interior_batch, linear_model

SHAPE = (1, 5, 5)


def run(attack, threat, model, batch):
    return attack(model, batch, threat, generator=seeds.generator(torch.device("cpu"), 0))


def of_one_class(model, n):
    batch = interior_batch(model, SHAPE, 3 * n)
    rows = (batch.y == 1).nonzero().squeeze(1)[:n]
    return Batch(batch.x[rows], batch.y[rows], batch.index[rows])


class Pixel(nn.Module):
    """Two classes of a one-pixel image, with the margin `slope` (x - 0.5) for the second."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        z = self.slope * (x.flatten(1) - 0.5)
        return torch.cat([torch.zeros_like(z), z], dim=1)


def pixels(*values):
    return torch.tensor(values).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_all_images_share_one_delta(norm):
    model = linear_model(SHAPE, 3)
    batch = interior_batch(model, SHAPE, 12)
    delta = run(Universal(), ThreatModel(norm, 0.1), model, batch) - batch.x
    assert delta.abs().max() > 0.01
    assert torch.allclose(delta, delta[:1].expand_as(delta), atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.3)])
def test_for_one_class_of_two_it_is_optimal(norm, eps):
    model = linear_model(SHAPE, 2)
    batch, threat = of_one_class(model, 20), ThreatModel(norm, eps)
    exact = exact_margin(model, batch, threat)
    assert 2 <= (exact < 0).sum() < len(batch)
    clear = exact.abs() > 1e-3
    wrong = model(run(Universal(), threat, model, batch)).argmax(dim=1) != batch.y
    assert torch.equal(wrong[clear], (exact < 0)[clear])


def test_two_images_that_need_opposite_deltas_are_not_both_broken():
    batch = Batch(pixels(0.48, 0.52), torch.tensor([0, 1]), torch.arange(2))
    x_adv = run(Universal(), ThreatModel("Linf", 0.05), Pixel(10.0), batch)
    assert (Pixel(10.0)(x_adv).argmax(dim=1) != batch.y).sum() < 2


def test_the_box_cuts_each_image_on_its_own():
    batch = Batch(pixels(0.45, 0.97), torch.tensor([0, 0]), torch.arange(2))
    first, second = run(Universal(), ThreatModel("Linf", 0.06), Pixel(10.0), batch).flatten().tolist()
    assert 0.5 < first < 0.504  # the first delta that was enough
    assert second == 1.0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_model_is_evaluated_only_at_allowed_points(norm):
    model, seen = linear_model(SHAPE, 3), []
    batch, threat = interior_batch(model, SHAPE, 12), ThreatModel(norm, 0.5)
    model.register_forward_hook(lambda *call: seen.append(call[1][0].detach().clone()))
    run(Universal(alpha=0.3), threat, model, batch)
    assert len(seen) > 3
    for x_adv in seen:
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert (threat.distance(x_adv, batch.x) <= 0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize(("clip", "up"), [(9.0, False), (1e6, True)])
def test_an_image_whose_loss_is_above_the_clip_does_not_count(clip, up):
    """The first is lost already and would pull delta up for ever; the second can only fall if delta goes down."""
    batch = Batch(pixels(0.9, 0.53), torch.tensor([0, 1]), torch.arange(2))
    attack = Universal(clip=clip, steps=1, alpha=0.01)
    first, second = (run(attack, ThreatModel("Linf", 0.02), Pixel(50.0), batch) - batch.x).flatten().tolist()
    assert first == second == 0  # neither delta fools more images than none does, so the first is kept
    seen = []
    model = Pixel(50.0)
    model.register_forward_hook(lambda *call: seen.append(call[1][0].detach().clone()))
    run(attack, ThreatModel("Linf", 0.02), model, batch)
    assert (seen[1] > batch.x).all() if up else (seen[1] < batch.x).all()


def test_the_delta_that_broke_the_most_is_returned():
    """A band around 0.6 is wrong; steps of 0.1 from 0.5 and 0.55 put one image into it, and then none."""

    class Band(nn.Module):
        def forward(self, x):
            logit = 0.03 - (x.flatten(1) - 0.6).abs()
            return torch.cat([torch.zeros_like(logit), logit], dim=1)

    batch = Batch(pixels(0.5, 0.1), torch.tensor([0, 0]), torch.arange(2))
    x_adv = run(Universal(alpha=0.1, steps=3), ThreatModel("Linf", 0.3), Band(), batch)
    assert torch.allclose(x_adv.flatten(), torch.tensor([0.6, 0.2]), atol=1e-6)


def test_it_stops_when_all_images_are_broken():
    model, seen = Pixel(10.0), []
    model.register_forward_hook(lambda *call: seen.append(len(call[2])))
    batch = Batch(pixels(0.49, 0.48), torch.tensor([0, 0]), torch.arange(2))
    run(Universal(alpha=0.015), ThreatModel("Linf", 0.1), model, batch)
    assert seen == [2, 2, 2]  # at 0, at 0.015 and at 0.03


def test_one_eps_for_all_and_a_positive_clip():
    threat = ThreatModel("Linf", torch.tensor([0.1, 0.2]))
    with pytest.raises(UserError, match="one eps for all"):
        Universal().check_fits(threat, SHAPE, 2)
    with pytest.raises(UserError, match="one eps for all"):
        run(Universal(), threat, Pixel(10.0), Batch(pixels(0.5, 0.5), torch.tensor([0, 1]), torch.arange(2)))
    with pytest.raises(UserError, match="clip is 0"):
        Universal(clip=0.0)
