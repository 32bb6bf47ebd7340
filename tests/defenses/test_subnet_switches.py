"""The switches of the thesis' ablations: initialisation, start of the scores, last batch norm, adversary; and RST."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core.config import make_config
from bench.testing.contracts import DefenseContract, tiny_model
from bench.training.architecture import fan_in, latent, linear_layers
from bench.training.subnet import masks
from defenses.binary_subnet import Config
from tests.defenses.exact_step import Step

VARIANTS = [
    ("binary-subnet", {"init": init, "last_norm": norm, "adversary": adversary})
    for init in ("binary", "kaiming") for norm in ("true", "false") for adversary in ("attack", "none")
]  # fmt: skip
FAST = [("binary-subnet-fast", {"init": "kaiming"}), ("binary-subnet-fast", {"adversary": "none"}), ("rst", {})]


@pytest.mark.parametrize(("name", "settings"), VARIANTS + FAST)
def test_no_weight_ever_changes(name, settings):
    loop = DefenseContract().loop(name, r=0.8, epochs=1, **settings)
    before = [latent(layer).clone() for layer in linear_layers(loop.model)]
    scores = [mask.scores.clone() for mask in masks(loop.model)]
    predictor, _ = loop.run()
    layers = linear_layers(predictor)
    assert all(torch.equal(latent(layer), weight) for layer, weight in zip(layers, before, strict=True))
    assert all(not torch.equal(m.scores, s) for m, s in zip(masks(loop.model), scores, strict=True))
    kept = sum(int((layer.weight != 0).sum()) for layer in layers)
    assert kept == round(0.2 * sum(weight.numel() for weight in before))


@pytest.mark.parametrize(("init", "wanted"), [("binary", [1.0, 1.0]), ("kaiming", [2 / 9 / 0.2, 2 / 256 / 0.2])])
def test_weights_are_constants_with_the_signs_of_the_default_initialisation(init, wanted):
    loop = DefenseContract().loop("binary-subnet", r=0.8, init=init)
    for layer, own, square in zip(linear_layers(loop.model), linear_layers(tiny_model()), wanted, strict=True):
        assert torch.allclose(latent(layer), own.weight.sign() * math.sqrt(square))
        assert layer.bias is None


@pytest.mark.parametrize(("settings", "ranges"), [
    ({"score_range": 0.3}, [0.3, 0.3]), ({"score_start": "fan-in"}, [9**-0.5, 256**-0.5]),
])  # fmt: skip
def test_scores_start_uniformly_in_their_range(settings, ranges):
    loop = DefenseContract().loop("binary-subnet", r=0.5, **settings)
    for mask, a in zip(masks(loop.model), ranges, strict=True):
        assert 0.8 * a < mask.scores.abs().max() <= a
        assert abs(mask.scores.mean()) < 0.3 * a


def test_the_last_norm_can_be_left_out():
    norms = [m for m in DefenseContract().loop("binary-subnet", last_norm="false").model.modules()
             if isinstance(m, nn.BatchNorm1d)]  # fmt: skip
    assert not norms
    assert make_config(Config, "it", {"last_norm": "false"}).last_norm is False


@pytest.mark.parametrize("name", ["binary-subnet", "binary-subnet-fast"])
def test_without_an_adversary_a_step_follows_the_clean_loss(name):
    step = Step(name, r=0.5, adversary="none")
    wanted = torch.autograd.grad(cross_entropy(step.model(step.x), step.y), [m.scores for m in masks(step.model)])
    before = [m.scores.detach().clone() for m in masks(step.loop.model)]
    step.loop.defense.train_step(step.batch, step.loop)
    for old, mask, gradient in zip(before, masks(step.loop.model), wanted, strict=True):
        assert torch.allclose(old - mask.scores, gradient, atol=1e-9)


def test_raw_steps_of_the_attack_follow_the_gradient_itself():
    step = Step("binary-subnet", r=0.5, step="raw", steps=1, alpha=0.7)
    start = step.start()
    x_adv = step.clip(start + 0.7 * len(start) * step.gradient(start, training=False))  # of the sum over the batch
    wanted = torch.autograd.grad(cross_entropy(step.model(x_adv), step.y), [m.scores for m in masks(step.model)])
    before = [m.scores.detach().clone() for m in masks(step.loop.model)]
    step.loop.defense.train_step(step.batch, step.loop)
    for old, mask, gradient in zip(before, masks(step.loop.model), wanted, strict=True):
        assert torch.allclose(old - mask.scores, gradient, atol=1e-9)


def test_rst_is_edge_pop_up_at_a_fixed_rate():
    loop = DefenseContract().loop("rst", r=0.9)
    layers = linear_layers(loop.model)
    assert [int((layer.weight != 0).sum()) for layer in layers] == [4, 256]  # a tenth of 36 and of 2,560
    assert all(mask.rank == "magnitude" for mask in masks(loop.model))
    assert [fan_in(layer.weight) for layer in layers] == [9, 256]
    assert all(not norm.affine for norm in loop.model.modules() if isinstance(norm, nn.BatchNorm2d))
