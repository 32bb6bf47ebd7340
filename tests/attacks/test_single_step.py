import pytest
import torch
from torch import nn

from attacks.single_step import SingleStep
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.passes import Passes, count_passes
from bench.core.threat import ThreatModel
from tests.attacks.test_minimum_norm_search import LIKELIEST, Trap, grey

CPU = torch.device("cpu")


class Bands(nn.Module):
    """Two classes of a one-pixel image: the second wins from 0.6 to 0.7, and again from 0.9."""

    def forward(self, x):
        x = x.flatten(1)
        logit = torch.maximum(0.05 - (x - 0.65).abs(), x - 0.9)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_first_band_is_found_and_not_a_later_one(norm):
    batch = Batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), torch.tensor([0]))
    x_adv = SingleStep()(Bands(), batch, ThreatModel(norm, 0.1), generator=seeds.generator(CPU, 0))
    assert x_adv.item() == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
def test_it_takes_one_gradient(box):
    model, batch = Trap(), grey()
    attack = SingleStep()
    with count_passes(model, Passes()) as passes:
        x_adv = attack(model, batch, ThreatModel("L2", 0.1, box), generator=seeds.generator(CPU, 0))
    assert passes.backwards == 1
    assert ThreatModel("L2", 0.1, box).distance(x_adv, batch.x).item() == pytest.approx(LIKELIEST, rel=2e-4)


def test_broken_examples_cost_no_more_passes():
    class Steep(nn.Module):
        """At 0.5 a flip is promised after 0.1: it comes sooner where the second pixel is dark, and never else."""

        def forward(self, x):
            a, b = x.flatten(1).unbind(dim=1)
            bend = torch.where(b < 0.5, 10 * (a - 0.54).clamp(min=0), -10 * (a - 0.54).clamp(min=0))
            return torch.stack([torch.zeros_like(a), a - 0.6 + bend], dim=1)

    x = torch.tensor([[0.5, 0.0], [0.5, 1.0]]).reshape(2, 1, 1, 2)
    batch, model, seen = Batch(x, torch.tensor([0, 0]), torch.arange(2)), Steep(), []
    model.register_forward_hook(lambda *call: seen.append(len(call[2])))
    SingleStep(steps=40)(model, batch, ThreatModel("L2", 0.1), generator=seeds.generator(CPU, 0))
    assert seen[:2] == [2, 2]
    assert seen[2:42].count(1) > 15
