"""What the minimum-norm attacks share, and the one trap that all but the single step avoid."""

import pytest
import torch
from torch import nn

from attacks.ascent import without_blocked_pixels
from attacks.minimum_norm import NearestAdversarial, clearly_misclassified
from bench.core import registry, seeds
from bench.core.contracts import Batch
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel

CPU = torch.device("cpu")
LIKELIEST, CLOSEST = 0.2, 0.05


class Trap(nn.Module):
    """From two grey pixels the likelier class is 0.2 away, along the first, and the other 0.05, along the second."""

    def forward(self, x):
        first, second = (x.flatten(1) - 0.5).unbind(dim=1)
        return torch.stack([torch.zeros_like(first), 0.5 * first - 0.1, 3 * second - 0.15], dim=1)


def grey(n=1):
    return Batch(torch.full((n, 1, 1, 2), 0.5), torch.zeros(n, dtype=torch.int64), torch.arange(n))


def distance(spec, norm, model, batch):
    attack, threat = parse_spec(spec, registry.attack).make(), ThreatModel(norm, 0.1)
    return threat.distance(attack(model, batch, threat, generator=seeds.generator(CPU, 0)), batch.x)


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "norm", "wanted"), [
    ("deepfool", "L2", CLOSEST), ("deepfool", "Linf", CLOSEST), ("deepfool:targets=1", "L2", LIKELIEST),
    ("fmn", "L2", CLOSEST), ("fmn", "Linf", CLOSEST), ("fmn", "L1", CLOSEST), ("fmn:targets=1", "L2", LIKELIEST),
    ("cw:steps=200", "L2", CLOSEST), ("cw:steps=200", "Linf", CLOSEST),
    pytest.param("cw:steps=200:targets=1", "L2", LIKELIEST, marks=pytest.mark.slow),
    ("single-step", "L2", LIKELIEST),
])  # fmt: skip
def test_the_closest_class_is_found_behind_the_likeliest(spec, norm, wanted):
    assert distance(spec, norm, Trap(), grey()).item() == pytest.approx(wanted, rel=0.01)


class SizeDependent(nn.Module):
    """Two classes that tie where the one pixel is 0.6, or a little later where several images are seen together."""

    def forward(self, x):
        logit = x.flatten(1) - (0.6 if len(x) == 1 else 0.6002)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def test_a_point_that_is_correct_in_the_whole_batch_is_moved_out():
    x = torch.tensor([0.5, 0.55]).reshape(2, 1, 1, 1)
    batch = Batch(x, torch.tensor([0, 1]), torch.arange(2))  # the second is wrong already, so the first is seen alone
    nearest = NearestAdversarial(SizeDependent(), batch, ThreatModel("L2", 1.0))
    assert nearest.rows.tolist() == [0]
    nearest.update(torch.full((1, 1, 1, 1), 0.6001), torch.tensor([True]), nearest.rows)
    point = nearest.finish(halvings=0)
    assert 0.6002 < point[0].item() < 0.6005
    assert point[1].item() == x[1].item()


def test_a_misclassification_within_rounding_does_not_count():
    logits = torch.tensor([[100.0, 100.0001], [100.0, 100.01], [100.0, 99.0]])
    assert clearly_misclassified(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [False, True, False]


def test_a_step_leaves_out_the_pixels_that_the_box_blocks():
    x = torch.tensor([0.0, 0.0, 0.5, 1.0]).reshape(1, 1, 2, 2)
    step = torch.tensor([1.0, -1.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    for box, expected in (((0.0, 1.0), [1, 0, 1, 0]), (None, [1, -1, 1, 1])):
        assert without_blocked_pixels(step, x, ThreatModel("L2", 1.0, box)).flatten().tolist() == expected
