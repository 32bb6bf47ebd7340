import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from bench.core.errors import UserError
from bench.testing.contracts import DefenseContract
from bench.training.architecture import linear_layers
from bench.training.budgets import adaptive_budgets
from bench.training.subnet import mask_layers, masks

SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=8)


@given(SIZES, st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_the_budget_is_exact_and_no_layer_keeps_more_than_it_has(sizes, share, gamma):
    total = round(share * sum(sizes))
    if total < len(sizes):
        with pytest.raises(UserError):
            adaptive_budgets(sizes, share, gamma)
        return
    budgets = adaptive_budgets(sizes, share, gamma)
    assert sum(budgets) == total
    assert all(1 <= kept <= size for kept, size in zip(budgets, sizes, strict=True))


@given(SIZES, st.floats(0.05, 0.95), st.floats(0.0, 1.0))
def test_layers_that_are_not_full_keep_in_proportion_to_size_to_the_gamma(sizes, share, gamma):
    if round(share * sum(sizes)) < len(sizes):
        return
    budgets = adaptive_budgets(sizes, share, gamma)
    rates = [kept / size**gamma for kept, size in zip(budgets, sizes, strict=True)]
    for i, size in enumerate(sizes):
        for j, other in enumerate(sizes):
            if budgets[i] < size and budgets[j] > 1:
                # rounding to whole numbers is all that may part them; a full layer keeps at most the common rate
                slack = 2 / size**gamma + 2 / other**gamma + len(sizes) / min(size, other) ** gamma
                assert rates[j] <= rates[i] + slack


@pytest.mark.parametrize(("gamma", "wanted"), [(1.0, [10, 100, 1000]), (0.0, [100, 505, 505])])
def test_the_two_extremes(gamma, wanted):
    # gamma = 1: one share for all; gamma = 0: one number for all, and the smallest layer is full
    assert adaptive_budgets([100, 1000, 10000], 1110 / 11100, gamma) == wanted


def test_a_layer_that_is_raised_to_one_weight_is_paid_for_by_another():
    assert adaptive_budgets([1, 1, 1, 1, 5000], 5 / 5004, 1.0) == [1, 1, 1, 1, 1]


def test_gradients_pass_straight_through_the_mask_and_the_attack_sees_the_mask_once():
    layer = nn.Linear(4, 3, bias=False)
    mask_layers(nn.Sequential(layer), [5], 0.01, "score")
    (mask,) = masks(layer)
    x = torch.rand(2, 4)
    layer(x).sum().backward()
    signs = layer.parametrizations.weight.original.detach()
    assert torch.allclose(mask.scores.grad, signs * x.sum(dim=0).expand(3, 4))
    assert (layer.weight != 0).sum() == 5
    kept = mask.scores.flatten().topk(5).indices
    assert (layer.weight.flatten()[kept] != 0).all()


def test_rank_by_magnitude_keeps_large_negative_scores():
    layer = nn.Linear(3, 1, bias=False)
    mask_layers(nn.Sequential(layer), [1], 0.01, "magnitude")
    (mask,) = masks(layer)
    mask.scores.data = torch.tensor([[-3.0, 1.0, 2.0]])
    assert (layer.weight != 0).tolist() == [[True, False, False]]
    layer(torch.ones(1, 3)).sum().backward()
    signs = layer.parametrizations.weight.original.detach()
    assert torch.equal(mask.scores.grad, signs * torch.tensor([[-1.0, 1.0, 1.0]]))  # of |s|


@pytest.mark.parametrize("name", ["binary-subnet", "binary-subnet-fast"])
def test_no_weight_ever_changes_and_the_budget_stays_exact(name):
    loop = DefenseContract().loop(name, r=0.5)
    layers = linear_layers(loop.model)
    before = [layer.parametrizations.weight.original.clone() for layer in layers]
    scores = [mask.scores.clone() for mask in masks(loop.model)]
    predictor, _ = loop.run()
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.parametrizations.weight.original, weight)
        assert set(weight.unique().tolist()) == {-1.0, 1.0}
        assert layer.bias is None
    assert all(not torch.equal(m.scores, s) for m, s in zip(masks(loop.model), scores, strict=True))
    sizes = [weight.numel() for weight in before]
    kept = sum(int((layer.weight != 0).sum()) for layer in linear_layers(predictor))
    assert kept == round(0.5 * sum(sizes))
    norms = [m for m in predictor.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms[-1].num_features == 10  # the last batch norm, over the logits
    assert all(not norm.affine for norm in norms)


def test_masks_are_computed_once_an_attack_and_follow_the_scores_afterwards():
    loop = DefenseContract().loop("binary-subnet", r=0.5, gamma=1.0)
    mask = masks(loop.model)[0]
    calls = []
    mask.register_forward_hook(lambda *call: calls.append(call))
    loop.defense.train_step(next(loop.shuffled()), loop)
    assert len(calls) == 2  # the ten steps of the attack, then the training pass
    with parametrize.cached():
        before = loop.model[0][0].weight.clone()
    mask.scores.data.neg_()
    assert not torch.equal(before, loop.model[0][0].weight)
