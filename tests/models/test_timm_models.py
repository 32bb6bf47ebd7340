"""Architectures of timm by name: with a small module in its place, and with the package if it is installed."""

import sys
import types

import pytest
import torch
from torch import nn

from bench.core.errors import UserError
from bench.core.model_specs import parse_model
from bench.models.build import build_model
from bench.runs.plan import make_plan
from bench.runs.request import Request

SHAPE = (3, 16, 16)


@pytest.fixture
def fake_timm(monkeypatch):
    """A timm of one convolutional network and one transformer, which must be told the size of its images."""
    made = []

    def create_model(name, *, pretrained, in_chans, num_classes, **rest):
        assert not pretrained
        made.append((name, rest))
        side = rest.get("img_size", (16, 16))[0]
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * side * side, num_classes))

    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name in ("tiny_net", "tiny_vit")
    timm.list_models = lambda: ["tiny_net", "tiny_vit"]
    timm.get_pretrained_cfg = lambda name: types.SimpleNamespace(fixed_input_size=name == "tiny_vit")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    return made


def test_the_network_has_the_channels_classes_and_size_of_the_data(fake_timm):
    model = build_model("timm.tiny_net", (1, 16, 16), 4)
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 4)
    assert build_model("timm.tiny_vit", (1, 8, 8), 3)(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert fake_timm == [("tiny_net", {}), ("tiny_vit", {"img_size": (8, 8)})]
    assert parse_model("timm.tiny_net")[0].text == "timm.tiny_net"


def test_a_normalisation_is_a_layer_before_it(fake_timm):
    text = "timm.tiny_net:mean=0.5+0.5+0.5:std=0.25+0.25+0.25"
    model, x = build_model(text, SHAPE, 4), torch.rand(2, *SHAPE)
    torch.testing.assert_close(model(x), model[1:]((x - 0.5) / 0.25))
    assert parse_model(text)[0].text == text


def test_a_wrong_name_has_the_nearest_ones(fake_timm):
    with pytest.raises(UserError, match=r"timm has no architecture 'tiny_nat': did you mean 'tiny_net'"):
        build_model("timm.tiny_nat", SHAPE, 4)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'robust-bracket\[timm\]'"):
        build_model("timm.resnet18", SHAPE, 4)


def test_the_adapter_and_the_version_of_the_package_decide_the_run(fake_timm, tmp_path):
    plan = make_plan(Request(defense="standard", model="timm.tiny_vit", attacks=[], out=tmp_path, dataset="digits"))
    assert "bench/models/timm_models.py" in plan.sources.training
    assert "bench/models/timm_models.py" in plan.sources.evaluation


@pytest.mark.slow
def test_the_real_package():
    pytest.importorskip("timm")
    net = build_model("timm.resnet10t:mean=0.5+0.5+0.5:std=0.5+0.5+0.5", (3, 32, 32), 10).eval()
    vit = build_model("timm.vit_tiny_patch16_224", (1, 32, 32), 10).eval()
    assert net(torch.rand(2, 3, 32, 32)).shape == vit(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build_model("timm.resnet18x", (3, 32, 32), 10)
