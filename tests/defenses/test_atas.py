import math

import pytest
import torch

from bench.core.contracts import Batch
from bench.testing.contracts import DefenseContract
from defenses.atas import ATAS, Config

EPS = 8 / 255


def test_the_released_step_size():
    defense = ATAS(Config())
    # a gradient of norm c halves the longest step 2 eps; none at all is clamped to 1.75 eps, a huge one to eps / 2
    v = torch.tensor([0.01**2, 0.0, 1.0, 0.005**2])
    assert torch.allclose(defense.alpha(v, EPS) / EPS, torch.tensor([1.0, 1.75, 0.5, 2 / 1.5]), atol=1e-6)


def test_imagenets_constants_can_be_set():
    defense = ATAS(Config(c=0.4, initial_step=16 / 255, largest=8))
    # gamma / C = 16/255 and C = 0.1 at eps 2/255
    v = torch.tensor([0.0, 0.1**2, 0.3**2])
    assert torch.allclose(defense.alpha(v, 2 / 255) * 255, torch.tensor([16.0, 8.0, 4.0]), atol=1e-5)


def test_c_is_scaled_with_eps():
    defense = ATAS(Config())
    assert torch.allclose(defense.alpha(torch.tensor([0.02**2]), 2 * EPS) / EPS, torch.tensor([2.0]), atol=1e-6)


def trained_step(**settings):
    """A loop that has done one step of ATAS, its batch, and the banks as they were before."""
    loop = DefenseContract().loop("atas", **settings)
    before = {key: bank.clone() for key, bank in loop.bank.items()}
    batch = next(loop.shuffled())
    return loop, batch, before


def test_the_preconditioner_is_the_papers_average_and_warm_up_leaves_it():
    for warm_up in (0.0, 1.0):
        loop, batch, _ = trained_step(warm_up=warm_up, beta=0.25)
        loop.bank["v"].fill_(1.0)
        x = loop.threat.project(batch.x + batch.read(loop.bank["delta"]), batch.x).requires_grad_()
        loop.model.eval()
        losses = torch.nn.functional.cross_entropy(loop.model(x), batch.y, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        loop.model.train()
        loop.defense.train_step(batch, loop)
        wanted = 0.25 + 0.75 * (gradient.flatten(1) / 128).square().sum(dim=1)
        wanted = torch.ones_like(wanted) if warm_up else wanted
        assert torch.allclose(batch.read(loop.bank["v"]), wanted, rtol=1e-4)
        others = torch.ones(len(loop.bank["v"]), dtype=torch.bool)
        others[batch.index] = False
        assert (loop.bank["v"][others] == 1).all()


def test_the_perturbation_is_scattered_back_after_the_step():
    loop, batch, before = trained_step()
    loop.defense.train_step(batch, loop)
    delta = batch.read(loop.bank["delta"])
    x_adv = batch.x + delta
    assert delta.abs().max() <= loop.eps * 1.001
    assert x_adv.min() >= -1e-3
    assert x_adv.max() <= 1 + 1e-3
    again = Batch(batch.x, batch.y, batch.index, batch.view)
    assert not torch.equal(again.read(before["delta"]), delta)
    others = torch.ones(len(before["delta"]), dtype=torch.bool)
    others[batch.index] = False
    assert torch.equal(before["delta"][others], loop.bank["delta"][others])


@pytest.mark.parametrize(
    ("epochs", "when"),
    [(30, {10, 20}), (15, {5, 10}), (6, {2, 4}), (5, {2}), (4, {3}), (3, {2}), (2, set()), (1, set())],
)
def test_perturbations_are_drawn_anew_before_the_reset_epochs_and_v_is_kept(epochs, when):
    loop = DefenseContract().loop("atas", epochs=epochs)
    for epoch in range(epochs):
        loop.epoch = epoch
        loop.bank["delta"].zero_()
        loop.bank["v"].fill_(7.0)
        loop.defense.end_epoch(loop)
        assert (loop.bank["delta"].abs().max() > 0) == (epoch + 1 in when)
        assert (loop.bank["v"] == 7).all()
    assert math.isclose(loop.eps, loop.threat.eps)


@pytest.mark.parametrize("epochs", range(1, 13))
@pytest.mark.parametrize("resets", [(10 / 30, 20 / 30), (0.1, 0.2, 0.3, 0.9), (0.0, 1.0)])
def test_no_reset_discards_perturbations_that_were_not_used_twice(epochs, resets):
    loop = DefenseContract().loop("atas", epochs=epochs, resets=resets)
    used, fewest = 0, 2
    for epoch in range(epochs):
        used += 1
        loop.epoch = epoch
        before = loop.bank["delta"].clone()
        loop.defense.end_epoch(loop)
        if not torch.equal(before, loop.bank["delta"]):
            fewest, used = min(fewest, used), 0
    assert fewest == 2


@pytest.mark.parametrize(("epochs", "room"), [(30, None), (6, None), (5, 1), (3, 1), (2, 0), (1, 0)])
def test_a_reset_that_is_left_out_is_warned_of(epochs, room):
    loop = DefenseContract().loop("atas", epochs=epochs)
    text = f"resets: {room} of 2 take place in {epochs} epochs, because perturbations are used in at least two"
    assert loop.warnings == ([] if room is None else [text])


def test_the_warm_up_ends_after_its_share_of_the_steps(monkeypatch):
    loop = DefenseContract().loop("atas", epochs=2, batch_size=2)  # 40 steps, of which 5/30 are 6.67
    warm = []
    for step in range(10):
        loop.steps_done = step
        loop.bank["v"].fill_(-1.0)
        loop.defense.train_step(next(loop.shuffled()), loop)
        warm.append(bool((loop.bank["v"] == -1).all()))
    assert warm == [True] * 7 + [False] * 3
