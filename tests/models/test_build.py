"""Any architecture may be normalised, and its weights keep their names."""

import pytest
import torch
from torch import nn

from bench.core.errors import UserError
from bench.core.model_specs import parse_model
from bench.models.build import build_model

SHAPE = (3, 8, 8)


@pytest.mark.parametrize("name", ["cnn", "small-cnn", "fc1"])
def test_a_normalised_model_is_the_model_at_normalised_images(name):
    plain = build_model(name, SHAPE, 4).eval()
    model = build_model(f"{name}:mean=0.1+0.2+0.3:std=0.5+0.6+0.7", SHAPE, 4).eval()
    model.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, *SHAPE)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(model(x), plain((x - mean) / std))


def test_an_architecture_with_its_own_normalisation_gets_it_once():
    model = build_model("resnet18:width=2:mean=0.1+0.2+0.3:std=0.5+0.6+0.7", SHAPE, 4)
    assert [type(module).__name__ for module in model.modules()].count("Normalize") == 1


def test_a_model_that_is_no_sequence_is_normalised_too(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(192, 4)\n\n    def forward(self, x):\n"
        "        return self.layer(x.flatten(1))\n\n\ndef build(shape, classes):\n    return Net()\n"
    )
    model = build_model(f"{path}:build:mean=0.5+0.5+0.5:std=1+1+1", SHAPE, 4)
    assert isinstance(model, nn.Sequential)
    layer = model.model.layer
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(model(x), layer(x.flatten(1) - 0.5))


def test_a_sequence_that_uses_a_layer_twice_keeps_both_uses(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n\n\ndef build(shape, classes):\n    relu = nn.ReLU()\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 4))\n"
    )
    model = build_model(f"{path}:build:mean=0+0+0:std=1+1+1", SHAPE, 4)
    layers = [layer for layer in model if type(layer).__name__ != "Normalize"]
    assert [type(layer) for layer in layers] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(
    ("options", "says"),
    [("mean=0.1:std=1", "3 channels"), ("mean=0.1+0.1+0.1", "one value"), ("std=1+1+0", "one value")],
)
def test_wrong_normalisations_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        build_model(f"cnn:{options}", SHAPE, 4)


def test_the_canonical_text_has_the_normalisation():
    assert parse_model("cnn:std=0.5:mean=0.25")[0].text == "cnn:mean=0.25:std=0.5"
    assert parse_model("cnn")[0].text == "cnn"
