import pytest
import torch
from torch import nn

from attacks.deepfool import DeepFool
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from tests.attacks.test_minimum_norm_search import CLOSEST, Trap, grey

CPU = torch.device("cpu")


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_published_attack_goes_two_percent_too_far(norm):
    attack, batch = DeepFool(halvings=0), grey()
    x_adv = attack(Trap(), batch, ThreatModel(norm, 0.1), generator=seeds.generator(CPU, 0))
    # the step is also 1e-4 longer
    assert ThreatModel(norm, 0.1).distance(x_adv, batch.x).item() == pytest.approx(1.02 * (CLOSEST + 1e-4), rel=1e-4)


class Flattening(nn.Module):
    """The second class wins where the first pixel exceeds 0.6: steadily, or at a slope that vanishes there."""

    def forward(self, x):
        way, kind = (x.flatten(1) - torch.tensor([0.6, 0.5])).unbind(dim=1)
        return torch.stack([torch.zeros_like(way), torch.where(kind < 0, way, way**3)], dim=1)


def test_broken_examples_cost_no_more_passes():
    x = torch.tensor([[0.5, 0.0], [0.5, 1.0]]).reshape(2, 1, 1, 2)
    model, seen = Flattening(), []
    model.register_forward_hook(lambda *call: seen.append(len(call[2])))
    attack = DeepFool(halvings=0)
    x_adv = attack(
        model,
        Batch(x, torch.tensor([0, 0]), torch.arange(2)),
        ThreatModel("L2", 0.1),
        generator=seeds.generator(CPU, 0),
    )
    assert (x_adv[..., 0] > 0.6).all()
    # the clean images, one step and its check for both; the steps of the second alone; the points together
    assert seen[:3] + seen[-1:] == [2, 2, 2, 2]
    assert len(seen) > 10
    assert set(seen[3:-1]) == {1}


def test_it_does_not_stop_short_of_the_boundary():
    with pytest.raises(UserError, match="overshoot is -1"):
        DeepFool(overshoot=-1)


def test_without_a_box_it_goes_as_far_as_it_must():
    batch = grey()
    batch.x[:] = -3.0
    attack = DeepFool()
    x_adv = attack(Trap(), batch, ThreatModel("L2", 0.1, box=None), generator=seeds.generator(CPU, 0))
    assert ThreatModel("L2", 0.1, box=None).distance(x_adv, batch.x).item() == pytest.approx(3.55, rel=0.01)
