"""Attacks with the box and without it, on a network whose only adversarial examples are outside of the box."""

import pytest
import torch
from torch import nn

from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.studies.reflected_loss.reflected_attacks import ReflectedAttacksStudy, accuracy_under


class Negative(nn.Module):
    """The second class of two if the first pixel is negative, which no image has."""

    def forward(self, x):
        z = x.flatten(1)[:, :1]
        return torch.cat([z, -z], dim=1)


@pytest.mark.parametrize(("box", "accuracy"), [((0.0, 1.0), 1.0), (None, 0.5)])
def test_without_the_box_points_leave_it(box, accuracy):
    x = torch.full((4, 1, 2, 2), 0.5)
    x[:2] = 0.02
    test = Split.of_tensors(x, torch.zeros(4, dtype=torch.int64))
    for planned in make_attacks(["fgsm", "r-fgsm", "pgd-10", "r-pgd"], ThreatModel("Linf", 0.1, box)).values():
        with Progress("attacks", 4, "example", show=False) as progress:
            assert accuracy_under(Negative(), test, planned, 0, progress) == accuracy


def test_it_asks_for_weights():
    with pytest.raises(UserError, match="checkpoint=FILE"):
        ReflectedAttacksStudy().run()
