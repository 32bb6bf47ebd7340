"""Passes per example."""

import torch
from torch import nn

from bench.core.passes import AttackPasses, count_passes, on_rows
from bench.core.threat import ThreatModel

LINF = ThreatModel("Linf", 0.1)


class Sign(nn.Module):
    """Two classes of one pixel: the second if it is above 0.5."""

    def forward(self, x):
        value = x.flatten(1) - 0.5
        return torch.cat([-value, value], dim=1)


def images(*pixels):
    return torch.tensor(pixels).reshape(-1, 1, 1, 1)


def test_forwards_and_backwards_of_each_example():
    x, y = images(0.1, 0.2, 0.3), torch.zeros(3, dtype=torch.int64)
    model = Sign()
    with count_passes(model, AttackPasses(x, y, LINF)) as passes:
        model(x)
        with on_rows(torch.tensor([1, 2, 2])):
            point = x[[1, 2, 2]].requires_grad_()
            model(point).sum().backward()
            with on_rows(torch.tensor([0])):  # the first of these rows
                model(x[1:2])
    assert passes.total().tolist() == [1, 4, 5]
    assert (passes.forwards, passes.backwards) == (7, 3)


def test_passes_of_undeclared_rows_are_shared_by_all_examples():
    x, y = images(0.1, 0.2, 0.3), torch.zeros(3, dtype=torch.int64)
    model = Sign()
    with count_passes(model, AttackPasses(x, y, LINF)) as passes:
        model(x[:2])
    assert passes.total().tolist() == [1, 1, 1]  # two thirds each, rounded up
    assert passes.forwards == 2


def test_an_example_is_broken_by_the_first_misclassified_point_that_is_allowed():
    x, y = images(0.45, 0.45, 0.45), torch.zeros(3, dtype=torch.int64)
    model = Sign()
    with count_passes(model, AttackPasses(x, y, LINF)) as passes:
        model(x)
        model(images(0.52, 0.7, 0.4))  # misclassified, misclassified but too far away, correct
        model(images(0.54, 0.53, 0.4))
    assert passes.passes_until_broken.tolist() == [2, 3, 0]


def test_outside_the_block_nothing_is_counted():
    x, y = images(0.1), torch.zeros(1, dtype=torch.int64)
    model = Sign()
    with count_passes(model, AttackPasses(x, y, LINF)) as passes:
        pass
    model(x)
    assert passes.total().tolist() == [0]


def test_rows_are_forgotten_after_their_block():
    x, y = images(0.1, 0.2), torch.zeros(2, dtype=torch.int64)
    model = Sign()
    with count_passes(model, AttackPasses(x, y, LINF)) as passes:
        with on_rows(torch.tensor([0])):
            model(x[:1])
        model(x)
    assert passes.total().tolist() == [2, 1]


def test_passes_through_a_part_of_the_model_are_counted_per_example():
    x, y = images(0.1, 0.2, 0.3), torch.zeros(3, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False))  # 2 and 4
    with count_passes(model, AttackPasses(x, y, ThreatModel("Linf", 1e-6))) as passes:
        model(x)
        with on_rows(torch.tensor([2])):
            model[:2](x[2:])
            model[2](model[:2](x[2:]).requires_grad_()).sum().backward()
    assert passes.total().tolist() == [1, 1, 1 + 1 + 2]  # 1/3, then 1 forwards, and a backward pass
    assert (passes.forwards, passes.backwards) == (3 + 1, 1)
