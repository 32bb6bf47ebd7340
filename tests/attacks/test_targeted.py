import pytest
import torch
from torch import nn

from attacks.targeted import Targeted
from bench.core import registry, seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel

THREAT = ThreatModel("Linf", 0.2)
MODEL = nn.Flatten()  # the pixels are the logits


def attacked(target, x, label=0):
    batch = Batch(torch.tensor(x).reshape(1, 1, 1, -1), torch.tensor([label]), torch.tensor([0]))
    attack = Targeted(target=target, random_start=False, steps=20)
    return attack(MODEL, batch, THREAT, generator=seeds.generator(torch.device("cpu"), 0)).flatten()


@pytest.mark.parametrize(("target", "raised"), [(1, 1), (3, 3), ("likely", 2), ("least-likely", 1)])
def test_the_logit_of_the_target_rises_and_the_others_fall(target, raised):
    x = [0.9, 0.1, 0.4, 0.2]
    moved = attacked(target, x) - torch.tensor(x)
    wanted = torch.full((4,), -0.2)
    wanted[raised] = 0.2
    assert torch.allclose(moved, wanted.maximum(-torch.tensor(x)), atol=1e-6)


def test_an_image_of_the_target_class_is_attacked_too():
    x = [0.9, 0.1, 0.4, 0.2]
    assert torch.allclose(attacked(0, x), torch.tensor([0.7, 0.0, 0.6, 0.0]), atol=1e-6)


def test_it_stops_at_the_first_misclassified_point():
    x = [0.5, 0.45, 0.1, 0.2]
    x_adv = attacked(1, x)
    assert x_adv.argmax() == 1
    assert torch.allclose(x_adv - torch.tensor(x), torch.tensor([-0.05, 0.05, -0.05, -0.05]), atol=1e-6)  # one step


def test_a_class_that_does_not_exist_is_refused():
    attack = parse_spec("targeted:target=4", registry.attack).make()
    with pytest.raises(UserError, match="target is 4; it must be 0 to 3, likely or least-likely"):
        attack.check_fits(THREAT, (1, 1, 4), 4)
