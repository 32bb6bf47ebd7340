import pytest
import torch
from torch import nn

from bench.core.layers import Normalize, Residual
from bench.core.passes import Passes, count_passes


def test_normalize_per_channel():
    x = torch.rand(2, 2, 3, 3)
    out = Normalize([0.5, 0.25], [0.5, 2.0])(x)
    torch.testing.assert_close(out[:, 0], (x[:, 0] - 0.5) / 0.5)
    torch.testing.assert_close(out[:, 1], (x[:, 1] - 0.25) / 2.0)


def test_normalize_has_nothing_to_learn_or_save():
    layer = Normalize([0.5], [0.5])
    assert not layer.state_dict()
    assert not list(layer.parameters())
    assert layer.double().mean.dtype == torch.float64  # it moves with the model


def test_residual_without_a_shortcut_adds_its_input():
    branch, x = nn.Linear(3, 3), torch.rand(4, 3)
    torch.testing.assert_close(Residual(branch)(x), branch(x) + x)


def test_residual_uses_its_shortcut():
    branch, shortcut = nn.Linear(3, 2), nn.Linear(3, 2)
    x = torch.rand(4, 3)
    torch.testing.assert_close(Residual(branch, shortcut)(x), branch(x) + shortcut(x))


def test_passes_count_examples():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.rand(5, 3, requires_grad=True)
    with count_passes(model, Passes()) as passes:
        model(x)
        with torch.no_grad():
            model(x[:2])
        torch.autograd.grad(model(x[:3]).sum(), x)
        model(x[:4]).sum().backward()
    assert passes == Passes(forwards=5 + 2 + 3 + 4, backwards=3 + 4)


def test_passes_end_with_the_block_even_after_an_error():
    model = nn.Linear(3, 2)

    def fail():
        with count_passes(model, Passes()) as passes:
            found.append(passes)
            model(torch.rand(2, 3))
            raise RuntimeError

    found: list[Passes] = []
    with pytest.raises(RuntimeError):
        fail()
    model(torch.rand(7, 3))
    assert found[0].forwards == 2


def test_passes_go_on_from_a_given_count():
    model, passes = nn.Linear(3, 2), Passes(forwards=10, backwards=1)
    for _ in range(2):
        with count_passes(model, passes) as same:
            model(torch.rand(4, 3))
        assert same is passes
    assert passes == Passes(forwards=18, backwards=1)


def test_counting_changes_no_result():
    model, x = nn.Linear(3, 2), torch.rand(4, 3, requires_grad=True)
    (plain,) = torch.autograd.grad(model(x).square().sum(), x)
    with count_passes(model, Passes()):
        (counted,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.equal(plain, counted)
