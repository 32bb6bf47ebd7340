import numpy as np
import pytest
import torch
from torch import nn

from bench.core.errors import UserError
from bench.studies.subnetworks.subnet_structure import (
    SIMULATIONS,
    SubnetStructureStudy,
    channel_counts,
    pair_row,
    picture,
    random_counts,
)
from bench.training.checkpoints import BuildSpec, save_weights
from bench.training.compaction import Pair
from bench.training.rebuild import new_model


def layer_with(zeros):
    layer = nn.Conv2d(3, 4, 2, bias=False)
    layer.weight.data = torch.ones_like(layer.weight)
    for index in zeros:
        layer.weight.data[index] = 0
    return layer


def test_counts_are_by_input_and_output_channel():
    inputs, outputs = channel_counts(layer_with([(1,), (slice(None), 2), (0, 0, 0, 0)]))
    assert inputs.tolist() == [11, 12, 0]
    assert outputs.tolist() == [7, 0, 8, 8]
    inputs, outputs = channel_counts(nn.Linear(5, 2))
    assert (inputs.tolist(), outputs.tolist()) == ([2] * 5, [5, 5])


def test_random_masks_keep_as_many_and_no_channel_more_than_it_has():
    counts = random_counts(6, 60, 25, np.random.default_rng(0))
    assert counts.shape == (SIMULATIONS, 6)
    assert (counts.sum(axis=1) == 25).all()
    assert counts.max() <= 10
    assert counts.mean() == pytest.approx(25 / 6)


def test_empty_channels_that_agree_are_counted_against_chance():
    first, second = layer_with([(0,), (1,)]), nn.Conv2d(4, 5, 1)
    second.weight.data[:, [0, 1]] = 0
    assert pair_row(Pair(first, [], second)) == ["4", "2", "2", "2", "1.0", "0.17"]  # 1 of 6 choices


def test_a_picture_has_the_kernels_side_by_side():
    layer = layer_with([(2, 1, 0, 1)])
    assert picture(layer, turned=False).shape == (8, 6)
    assert np.argwhere(picture(layer, turned=False) == 0).tolist() == [[4, 3]]
    assert np.argwhere(picture(layer, turned=True) == 0).tolist() == [[2, 5]]


def test_the_report_of_a_network(tmp_path):
    spec = BuildSpec(
        model="small-cnn:width=6:hidden=16:batchnorm=true", shape=(1, 8, 8), classes=10, defense="binary-subnet",
        training={"r": 0.97},
    )  # fmt: skip
    path, figure = tmp_path / "weights.safetensors", tmp_path / "it.svg"
    save_weights(path, new_model(spec), spec)
    text = SubnetStructureStudy(checkpoint=str(path), figure=str(figure), repeats=1, device="cpu", threads=1).run()
    assert "0.stem" in text
    assert "0.conv2 - 0.fc1" in text
    assert "times as fast" in text
    assert figure.stat().st_size > 1000
    with pytest.raises(UserError, match="checkpoint=FILE"):
        SubnetStructureStudy().run()
