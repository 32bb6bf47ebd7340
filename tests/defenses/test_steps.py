"""What single defenses do in a step, seen from outside."""

import pytest
import torch
from torch import nn

from attacks.losses import reflected
from bench.core.errors import UserError
from bench.testing.contracts import DefenseContract
from bench.training.perturbation_bank import carried_start
from defenses.binary_subnet import BinarySubnet, Config


def calls_of_a_step(name, **settings):
    """(mode of the model, mode of its batch norm's statistics) of each forward pass in one step of a defense."""
    loop = DefenseContract().loop(name, **settings)
    seen = []
    loop.model.register_forward_hook(lambda *call: seen.append(call[0].training))
    loop.model.train()
    loop.defense.train_step(next(loop.shuffled()), loop)
    return seen


@pytest.mark.parametrize(("name", "settings", "wanted"), [
    ("standard", {}, [True]),
    ("pgd-at", {"steps": "3"}, [False] * 3 + [True]),
    ("pgd-at", {"steps": "3", "attack_mode": "train"}, [True] * 4),
    ("atas", {}, [False, True]),
    ("atta", {}, [False, True]),
    ("fgsm-rs", {}, [True, True]),
    ("fgsm-rs", {"attack_mode": "eval"}, [False, True]),
    ("r-pgd", {"steps": "3"}, [False] * 4 + [True]),
    ("trades", {"steps": "3"}, [False] * 4 + [True, True]),
])  # fmt: skip
def test_passes_and_modes_of_a_step(name, settings, wanted):
    assert calls_of_a_step(name, **settings) == wanted


def test_atta_goes_on_from_the_perturbation_it_left():
    loop = DefenseContract().loop("atta", alpha="0.5eps", crop="1")
    batch = next(loop.shuffled())
    loop.defense.train_step(batch, loop)
    left = carried_start(loop, batch)
    seen = []
    loop.model.register_forward_pre_hook(lambda *call: seen.append(call[1][0].detach().clone()))
    loop.defense.train_step(batch, loop)
    assert torch.equal(seen[0], left)
    assert (left - batch.x).abs().max() > 0.3 * loop.eps


def test_r_pgd_trains_on_the_iterate_of_the_highest_reflected_loss():
    loop = DefenseContract().loop("r-pgd", steps="4", alpha="0.4", step="l2", norm="L2")
    loop.model.load_state_dict({k: 20 * v for k, v in loop.model.state_dict().items()})  # so steep that steps overshoot
    batch = next(loop.shuffled())
    seen = []
    loop.model.register_forward_hook(
        lambda *call: seen.append((call[1][0].detach().clone(), call[2].detach(), call[0].training))
    )
    loop.defense.train_step(batch, loop)
    heights = torch.stack([reflected(logits, batch.y) for _, logits, training in seen if not training])
    points = torch.stack([x for x, _, training in seen if not training])
    assert (heights.argmax(dim=0) < 4).any()  # not always the last
    best = points[heights.argmax(dim=0), torch.arange(len(batch))]
    assert torch.equal(seen[-1][0], best)


def test_fgsm_rs_takes_one_step_of_one_and_a_quarter_eps_from_inside_the_ball():
    loop = DefenseContract().loop("fgsm-rs", crop="0")
    batch = next(loop.shuffled())
    seen = []
    loop.model.register_forward_pre_hook(lambda *call: seen.append(call[1][0].detach().clone()))
    loop.defense.train_step(batch, loop)
    start, end = seen
    assert loop.threat.contains(start, batch.x).all()
    assert loop.threat.contains(end, batch.x).all()
    moved = (end - start).abs()
    assert moved.max() <= 1.25 * loop.eps + 1e-6
    assert moved.max() > loop.eps  # some pixels start beyond the middle and cross it


def test_a_model_whose_last_layer_is_no_linear_one_cannot_be_binarised():
    with pytest.raises(UserError, match="last layer"):
        BinarySubnet(Config()).build(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))
