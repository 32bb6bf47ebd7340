import math

import pytest
import torch
from torch import nn

from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.models.build import build_model
from bench.studies.adversarial_training.loss_surface import LossSurfaceStudy, bulges, loss_surface
from bench.training.checkpoints import BuildSpec, save_weights

THREAT = ThreatModel("Linf", 0.1)


def surface_of(model, n=4, points=5):
    x = torch.full((n, 1, 2, 2), 0.5)
    batch = Batch(x, torch.zeros(n, dtype=torch.int64), torch.arange(n))
    return loss_surface(model, batch, THREAT, points, torch.Generator().manual_seed(0))


def linear():
    """The logit of class 0 falls by the sum of the pixels, from a margin of 1 at the images of `surface_of`."""
    last = nn.Linear(4, 2)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[-1.0] * 4, [0.0] * 4]))
        last.bias.copy_(torch.tensor([3.0, 0.0]))
    return nn.Sequential(nn.Flatten(), last)


def test_on_a_linear_model_the_loss_rises_along_the_fgsm_direction():
    surface, bulge = surface_of(linear())
    for number, a in enumerate((0.0, 0.025, 0.05, 0.075, 0.1)):
        assert surface[number, 0] == pytest.approx(math.log1p(math.exp(-(1 - 4 * a))), abs=1e-6)
    assert bulge == 0
    assert (surface[0] <= surface[0, -1].max() + 0.5).all()


def test_a_bulge_is_a_loss_that_is_higher_on_the_way():
    path = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.5], [0.5, 1.0, 1.0]])
    assert bulges(path) == pytest.approx(1 / 3)


def test_images_that_are_misclassified_do_not_count():
    model = linear()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-3.0, 0.0]))
    with pytest.raises(UserError, match="classifies none"):
        surface_of(model)


def test_a_run_is_drawn(tmp_path):
    spec = BuildSpec(model="small-cnn", shape=(1, 8, 8), classes=10, defense=None, training={})
    torch.manual_seed(0)
    save_weights(tmp_path / "weights.safetensors", build_model("small-cnn", (1, 8, 8), 10), spec)
    figure = tmp_path / "surface.png"
    text = LossSurfaceStudy(
        checkpoints=(str(tmp_path / "weights.safetensors"),), suite="digits", points=3, threads=1, figure=str(figure)
    ).run()
    assert "half-way to FGSM" in text
    assert len(text.split("|")) > 12
    assert figure.stat().st_size > 1000


@pytest.mark.parametrize(("options", "said"), [({}, "checkpoints=FILE"), ({"checkpoints": ("a",), "points": 2}, "3")])
def test_options_that_are_not_valid(options, said):
    with pytest.raises(UserError, match=said):
        LossSurfaceStudy(**options).run()
