import math

import pytest
import torch

from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from bench.models.build import build_model
from certifiers.linear_bounds import linear_bounds


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


X = torch.rand((5, 1, 2, 3), generator=torch.Generator().manual_seed(0))


def output(model, x):
    return model(x)[:, 1] - model(x)[:, 0]


@pytest.mark.parametrize(("spec", "activation"), [
    ("two-layer:width=7", lambda z: z.clamp(min=0)),
    ("two-layer:width=7:activation=leaky-relu:slope=0.3", lambda z: torch.maximum(z, 0.3 * z)),
    ("two-layer:width=7:activation=softplus:bias=true", lambda z: torch.log1p(z.exp())),
])  # fmt: skip
def test_two_classes_are_one_output_with_a_fixed_top(spec, activation):
    model = build_model(spec, (1, 2, 3), 2)
    hidden = activation(model.stem(X.flatten(1)))
    signs = (2 * model.output.weight[1] * math.sqrt(7)).round()
    assert (signs.abs() == 1).all()
    assert torch.allclose(output(model, X), hidden @ signs / math.sqrt(7), atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == ["stem.weight", "stem.bias"][: 1 + ("bias" in spec)]


def test_a_mirrored_start_is_zero_and_not_a_constant_network():
    model = build_model("two-layer:width=8:mirrored=true:activation=softplus:bias=true", (1, 2, 3), 2)
    assert output(model, X).abs().max() < 1e-6
    with torch.no_grad():
        model.stem.weight[0] += 1
    assert output(model, X).abs().min() > 1e-3


def test_deep_ntk_has_frozen_ends_and_the_paper_s_variances():
    model = build_model("deep-ntk:width=300:depth=2", (1, 2, 3), 2)
    assert [name for name, _ in model.named_parameters()] == ["fc1.weight", "fc2.weight"]
    for weight in (model.stem.weight, model.fc1.weight, model.fc2.weight):
        assert 0.9 < float(weight.detach().var()) * 300 / 2 < 1.1
    assert 0.7 < float((2 * model.output.weight[1]).var()) < 1.3
    h = model.stem.weight @ X[0].flatten()
    for layer in (model.fc1, model.fc2):
        h = (layer.weight @ h).clamp(min=0)
    assert torch.allclose(output(model, X[:1])[0], 2 * model.output.weight[1] @ h, atol=1e-3)


@pytest.mark.parametrize("spec", ["two-layer:width=6:activation=softplus", "deep-ntk:width=6"])
def test_certifiers_bound_them(spec):
    model, threat = build_model(spec, (1, 2, 3), 2).double(), ThreatModel("L2", 0.1, None)
    x, y = X.double(), torch.tensor([0, 1, 0, 1, 1])
    bound = linear_bounds(model, x, y, threat).margin[:, 0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        margins = (2 * y - 1) * output(model, threat.random_start(x, generator))
        assert (margins >= bound).all()


@pytest.mark.parametrize("spec", ["two-layer:width=3:mirrored=true", "two-layer:top=0", "deep-ntk:depth=0"])
def test_impossible_networks_are_refused(spec):
    with pytest.raises(UserError, match="takes"):
        build_model(spec, (1, 2, 3), 2)
