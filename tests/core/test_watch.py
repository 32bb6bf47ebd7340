"""Passes, example by example."""

import torch
from torch import nn

from bench.core.passes import on_rows, watch
from bench.core.threat import ThreatModel

LINF = ThreatModel("Linf", 0.1)


class Sign(nn.Module):
    """Two classes of one pixel: the second where it is above 0.5."""

    def forward(self, x):
        height = x.flatten(1) - 0.5
        return torch.cat([-height, height], dim=1)


def images(*pixels):
    return torch.tensor(pixels).reshape(-1, 1, 1, 1)


def test_forwards_and_backwards_of_each_example():
    x, y = images(0.1, 0.2, 0.3), torch.zeros(3, dtype=torch.int64)
    model = Sign()
    with watch(model, x, y, LINF) as seen:
        model(x)
        with on_rows(torch.tensor([1, 2, 2])):
            point = x[[1, 2, 2]].requires_grad_()
            model(point).sum().backward()
            with on_rows(torch.tensor([0])):  # the first of these rows
                model(x[1:2])
    assert seen.total().tolist() == [1, 4, 5]
    assert (seen.forwards, seen.backwards) == (7, 3)


def test_passes_that_nobody_places_are_shared_by_all():
    x, y = images(0.1, 0.2, 0.3), torch.zeros(3, dtype=torch.int64)
    model = Sign()
    with watch(model, x, y, LINF) as seen:
        model(x[:2])
    assert seen.total().tolist() == [1, 1, 1]  # two thirds each, rounded up
    assert seen.forwards == 2


def test_an_example_falls_at_the_first_wrong_point_that_is_allowed():
    x, y = images(0.45, 0.45, 0.45), torch.zeros(3, dtype=torch.int64)
    model = Sign()
    with watch(model, x, y, LINF) as seen:
        model(x)
        model(images(0.52, 0.7, 0.4))  # wrong, wrong but too far, right
        model(images(0.54, 0.53, 0.4))
    assert seen.fell.tolist() == [2, 3, 0]


def test_outside_the_block_nothing_is_counted():
    x, y = images(0.1), torch.zeros(1, dtype=torch.int64)
    model = Sign()
    with watch(model, x, y, LINF) as seen:
        pass
    model(x)
    assert seen.total().tolist() == [0]


def test_rows_are_forgotten_after_their_block():
    x, y = images(0.1, 0.2), torch.zeros(2, dtype=torch.int64)
    model = Sign()
    with watch(model, x, y, LINF) as seen:
        with on_rows(torch.tensor([0])):
            model(x[:1])
        model(x)
    assert seen.total().tolist() == [2, 1]
