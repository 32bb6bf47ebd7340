import pytest
import torch
from torch import nn

from attacks.fmn import FMN
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import Passes, count_passes
from bench.core.threat import ThreatModel
from tests.attacks.test_minimum_norm_search import Trap, grey

CPU = torch.device("cpu")


class TwoPixels(nn.Module):
    """The second class wins where 2 a + b exceeds 2.5."""

    def forward(self, x):
        logit = x.flatten(1) @ torch.tensor([2.0, 1.0]) - 2.5
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def test_under_l1_the_box_stops_the_steepest_pixel_and_the_next_one_goes_on():
    batch = Batch(torch.tensor([0.8, 0.4]).reshape(1, 1, 1, 2), torch.tensor([0]), torch.tensor([0]))
    attack = FMN()
    x_adv = attack(TwoPixels(), batch, ThreatModel("L1", 0.1), generator=seeds.generator(CPU, 0))
    # 0.2 of the first is all there is, and makes 0.4 of the missing 0.5; the second makes the rest
    assert x_adv.flatten().tolist() == pytest.approx([1.0, 0.5], abs=0.02)
    assert ThreatModel("L1", 0.1).distance(x_adv, batch.x).item() == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize(("targets", "forwards", "backwards"), [(1, 1 + 30 + 1 + 1, 30), (9, 1 + 1 + 30 + 2 + 1, 32)])
def test_two_descents_share_the_steps_of_one(targets, forwards, backwards):
    model, attack = Trap(), FMN(steps=30, targets=targets, halvings=0)
    with count_passes(model, Passes()) as passes:
        attack(model, grey(), ThreatModel("L2", 0.1), generator=seeds.generator(CPU, 0))
    assert (passes.forwards, passes.backwards) == (forwards, backwards)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_gamma_of_zero_or_one_is_refused(gamma):
    with pytest.raises(UserError, match="between 0 and 1"):
        FMN(gamma=gamma)
