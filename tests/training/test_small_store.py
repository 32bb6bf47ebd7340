"""Perturbations that are stored smaller than the images."""

import pytest
import torch

from bench.testing.contracts import DefenseContract
from bench.training.perturbation_bank import carried_start, carry


@pytest.fixture
def loop():
    return DefenseContract().loop("atta", store_size=5)  # a canvas of 10 x 10


def test_a_stored_value_is_the_mean_of_its_square(loop):
    batch = next(loop.shuffled())
    loop.bank["delta"].zero_()
    delta = torch.rand(batch.x.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    carry(loop, batch, batch.x + delta)
    canvas = torch.zeros(loop.canvas)
    batch.write(canvas, delta)
    wanted = canvas[batch.index].unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    assert loop.bank["delta"].shape == (40, 1, 5, 5)
    assert torch.allclose(loop.bank["delta"][batch.index].float(), wanted, atol=1e-4)
    others = torch.ones(40, dtype=torch.bool)
    others[batch.index] = False
    assert not loop.bank["delta"][others].any()


def test_the_start_follows_crop_and_flip(loop):
    batch = next(loop.shuffled())
    loop.bank["delta"] = torch.rand(40, 1, 5, 5, generator=torch.Generator().manual_seed(0)).half() * 0.2
    large = loop.bank["delta"].float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = loop.threat.project(batch.x + batch.read(large), batch.x)
    assert torch.equal(carried_start(loop, batch), wanted)


@pytest.mark.parametrize("defense", ["atta", "atas", "atta-at"])
def test_trainings_use_it(defense):
    loop = DefenseContract().loop(defense, store_size=4)
    loop.run()
    assert loop.bank["delta"].shape == (40, 1, 4, 4)
    assert loop.bank["delta"].any()
