"""Removal of empty channels: the same logits, and every channel that can go is gone."""

import pytest
import torch
from torch import nn

from bench.models.build import build_model
from bench.testing.contracts import DefenseContract, tiny_batch
from bench.training.architecture import linear_layers
from bench.training.compaction import compacted, pairs


def randomise_norms(model):
    """Statistics as after a training."""
    torch.manual_seed(1)
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]:
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


def sizes(model):
    return [tuple(layer.weight.shape[:2]) for layer in linear_layers(model)]


def difference(model, other, shape):
    x = torch.rand(8, *shape)
    with torch.no_grad():
        return float((model(x) - other(x)).abs().max() / model(x).abs().max())


def test_channels_that_nothing_reads_are_removed_and_what_becomes_empty_by_it():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten()]
    model = randomise_norms(nn.Sequential(*layers, nn.Linear(5 * 36, 10)))
    model[6].weight.data[:, 2 * 36 : 4 * 36] = 0  # channels 2 and 3 of the second layer
    model[3].weight.data[[0, 1, 4], 5] = 0  # channel 5 is then read by 2 and 3 only
    small = compacted(model)
    assert sizes(small) == [(5, 1), (3, 5), (10, 108)]
    assert small[1].num_features == 5
    assert difference(model, small, (1, 8, 8)) < 1e-6
    assert sizes(model) == [(6, 1), (5, 6), (10, 180)]  # a copy


@pytest.mark.parametrize(("shift", "removed"), [(-1.0, True), (1.0, False)])
def test_a_channel_without_weights_is_removed_only_if_it_is_zero(shift, removed):
    # with a positive shift it is a constant that the zeros of the padding do not have
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1),
        nn.Flatten(), nn.Linear(3 * 64, 10),
    )  # fmt: skip
    model[0].weight.data[1] = 0
    model[1].bias.data[1] = shift
    small = compacted(randomise_norms(model))
    assert sizes(small)[0] == (3 if removed else 4, 1)
    assert difference(model, small, (1, 8, 8)) < 1e-6


def test_in_a_residual_block_only_the_inner_channels_are_removed():
    torch.manual_seed(0)
    model = randomise_norms(build_model("resnet18:width=8", (3, 8, 8), 10))
    block = model.stage1[0][0].branch
    block[0].weight.data[2:5] = 0
    block[3].weight.data[:, 2:5] = 0
    block[3].weight.data[6] = 0  # an output that the sum joins
    small = compacted(model)
    assert small.stage1[0][0].branch[0].weight.shape[0] == 5
    assert small.stage1[0][0].branch[3].weight.shape[:2] == (8, 5)
    assert difference(model, small, (3, 8, 8)) < 1e-6
    assert len(pairs(model)) == 8  # one in each block; the stem and the last layer touch sums


@pytest.mark.parametrize(("name", "settings"), [
    ("binary-subnet", {}), ("rst", {}), ("hydra", {"last_norm": "true"}), ("flyingbird", {}), ("atmc", {}),
])  # fmt: skip
def test_pruned_networks_keep_their_logits(name, settings):
    model, _ = DefenseContract().loop(name, r=0.97, epochs=2, **settings).run()
    small = compacted(model)
    x = tiny_batch().x
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-6 * float(model(x).abs().max()))
    assert sum(a < b for (a, _), (b, _) in zip(sizes(small), sizes(model), strict=True)) <= 1
    assert all(not hasattr(layer, "parametrizations") for layer in linear_layers(small))


def test_an_empty_network_keeps_a_channel():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    model[2].weight.data.zero_()
    small = compacted(model)
    assert sizes(small) == [(1, 1), (10, 36)]
    assert difference(model, small, (1, 8, 8)) == 0
