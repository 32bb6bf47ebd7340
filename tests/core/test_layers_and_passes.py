import copy

import pytest
import torch
from torch import nn

from bench.core.layers import Normalize, Residual
from bench.core.passes import Passes, count_passes
from bench.core.threat import ThreatModel
from bench.testing.contracts import batch_of
from certifiers.ibp import IBP


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


class Ensemble(nn.Module):
    """In train mode one network, in eval mode the mean of two."""

    def __init__(self):
        super().__init__()
        self.live = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
        self.other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.live(x) if self.training else (self.live(x) + self.other(x)) / 2


def test_a_part_with_all_layers_is_the_model_and_parts_add_up():
    model = Ensemble().train()
    x = torch.rand(6, 3, requires_grad=True)
    with count_passes(model, Passes()) as passes:
        model(x)
        torch.autograd.grad(model.live(x).sum(), x)
        for chunk in x.split(4):
            model.live(chunk)
        hidden = model.live[:2](x)  # 12 of 20 multiply-adds
        torch.autograd.grad(model.live[2](hidden).sum(), hidden)  # 8 of 20
    assert (passes.forwards, passes.backwards) == (6 + 6 + 6 + 6, 6 + round(6 * 8 / 20))


def test_the_whole_model_is_that_of_train_mode_if_it_was_called():
    model, x = Ensemble(), torch.rand(6, 3)
    for training, passes_of_live in ((True, 6), (False, 3)):
        with count_passes(model.train(training), Passes()) as passes:
            model(x)
            model.live(x)
        assert passes.forwards == 6 + passes_of_live


def test_shares_of_a_pass_are_kept_for_the_next_count():
    model, x, passes = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.rand(1, 3), Passes()
    for _ in range(50):
        with count_passes(model, passes):
            if passes.forwards == 0:
                model(x)
            model[0](x)  # 0.6 of a pass
    assert passes.forwards == 1 + 50 * 0.6


@pytest.mark.parametrize(("layer", "shape", "work"), [
    (nn.Linear(3, 4), (5, 3), 5 * 12),
    (nn.Linear(3, 4), (5, 7, 3), 5 * 7 * 12),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 4, 8, 8), 5 * 64 * 6 * 2 * 9),
    (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (5, 4, 8, 8), 5 * 64 * 4 * 3 * 4),
    (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (5, 3), 5 * 12),
])  # fmt: skip
def test_the_work_of_a_layer_is_its_multiply_adds(layer, shape, work):
    model = nn.Sequential(layer)
    with count_passes(model, Passes()) as passes:
        layer(torch.rand(shape))
    assert passes.forward_work == work
    assert not layer._forward_hooks
    assert not model._forward_pre_hooks


def test_other_weights_and_copies_are_counted():
    model, x = nn.Sequential(nn.Linear(3, 2)), torch.rand(4, 3)
    weights = {name: 2 * weight for name, weight in model.named_parameters()}
    with count_passes(model, Passes()) as passes:
        torch.func.functional_call(model, weights, (x,))
        torch.func.functional_call(model[0], {name[2:]: weight for name, weight in weights.items()}, (x,))
        copy.deepcopy(model)(x)
    assert passes.forwards == 3 * 4


def test_a_model_whose_passes_are_counted_can_be_bounded():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with count_passes(model, Passes()):
        counted = IBP()(model, batch_of(model, (1, 2, 2), 2), ThreatModel("Linf", 0.1), generator=torch.Generator())
    plain = IBP()(model, batch_of(model, (1, 2, 2), 2), ThreatModel("Linf", 0.1), generator=torch.Generator())
    assert torch.equal(counted.margins, plain.margins)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_compiled_parts_are_left_alone():
    model = nn.Sequential(torch.jit.script(nn.Linear(3, 2)), nn.Linear(2, 2))
    with count_passes(model, Passes()) as passes:
        model(torch.rand(4, 3))
    assert passes.forwards == 4
