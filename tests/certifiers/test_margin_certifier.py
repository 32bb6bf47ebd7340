"""What rounding may do to a margin, and what becomes of margins that are in doubt."""

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.core import registry
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.layers import Normalize
from bench.core.specs import parse_spec
from bench.core.threat import TOLERANCE, ThreatModel
from certifiers.crown import Crown, CrownIBP, FastLin
from certifiers.ibp import IBP
from certifiers.input_regions import region_of
from certifiers.network import Network
from certifiers.rounding import rounding_error
from tests.linear import exact_margin, interior_batch, linear_model
from tests.networks import drawn_weights, images

CERTIFIERS = {"ibp": IBP(), "fast-lin": FastLin(), "crown": Crown(), "crown-ibp": CrownIBP(relaxation="tight")}
CHECKPOINTS = Path(__file__).parents[3] / "shared" / "checkpoints"


def certificate(name, model, x, y, threat):
    with torch.no_grad():
        return CERTIFIERS[name].certify(model, Batch(x, y, torch.arange(len(y))), threat, generator=torch.Generator())


def rounded(name, model, x, y, threat):
    """What float32 adds to the margins, and what is stated of it, (B,) each."""
    certifier, exact = CERTIFIERS[name], copy.deepcopy(model).double()
    with torch.no_grad():
        network = Network(model, x[:1])
        single = certifier.margins(network, x, y, threat)
        double = certifier.margins(Network(exact, x[:1].double()), x.double(), y, threat)
        stated = rounding_error(network, region_of(x, threat))
    return (single.double() - double).masked_fill(double == torch.inf, 0).amax(dim=1), stated


def mlp(*sizes, gain=1.0, curve=nn.ReLU):
    layers = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), curve()]
    return drawn_weights(nn.Sequential(*layers[:-1]).eval(), 0, gain).float()


def structured(model):
    """All weights positive and nearly the same: then partial sums grow, and nothing cancels."""
    for parameter in model.parameters():
        parameter.data = 0.1 + 1e-3 * parameter.data
    return model


def cancelling():
    """Large weights, and biases that take all of it away again."""
    model = mlp(1, 1024, 2)
    first, last = model[1], model[3]
    draw = torch.Generator().manual_seed(0)
    first.weight.data = 1000 * (1 + torch.rand(first.weight.shape, generator=draw))
    first.bias.data = 10 - first.weight.data[:, 0] / 2
    last.weight.data = torch.tensor([[1.0], [-1.0]]) * torch.rand(last.weight.shape, generator=draw) / 1024
    last.bias.data.zero_()
    return model


def small_cnn():
    model = nn.Sequential(
        Normalize((0.4, 0.5, 0.6), (0.05, 0.1, 0.2)),
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    return drawn_weights(model.eval(), 0, 1.0).float()


NETS = {
    "narrow": (lambda: mlp(4, 8, 3), (1, 2, 2)),
    "wide": (lambda: mlp(4, 2048, 3), (1, 2, 2)),
    "many pixels": (lambda: mlp(3072, 32, 10), (3, 32, 32)),
    "deep": (lambda: mlp(16, *[24] * 10, 3), (1, 4, 4)),
    "deep and steep": (lambda: mlp(16, *[24] * 6, 3, gain=3), (1, 4, 4)),
    "sigmoid": (lambda: mlp(16, 32, 32, 3, gain=2, curve=nn.Sigmoid), (1, 4, 4)),
    "leaky": (lambda: mlp(16, 32, 32, 3, curve=nn.LeakyReLU), (1, 4, 4)),
    "convolutional": (small_cnn, (3, 8, 8)),
    "no cancellation": (lambda: structured(mlp(3072, 64, 16, 3)), (3, 32, 32)),
    "cancellation": (cancelling, (1, 1, 1)),
}


@pytest.mark.parametrize("norm", ["Linf", pytest.param("L2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["ibp", "fast-lin", "crown", pytest.param("crown-ibp", marks=pytest.mark.slow)])
def test_float32_is_as_near_to_float64_as_stated(name, net, norm):
    make, shape = NETS[net]
    torch.manual_seed(0)
    model = make()
    x = images(shape, 12, 1).float()
    if net == "cancellation":
        x = 0.5 + 1e-3 * x
    y = model(x).argmax(dim=1)
    # where intervals are narrow, the lines of S-curves are other ones in float32: sound, but not to be compared
    eps = 0.3 if net == "sigmoid" else 1e-3
    difference, stated = rounded(name, model, x, y, ThreatModel(norm, eps))
    assert (difference <= stated).all(), (difference / stated).max()


@pytest.mark.parametrize("side", [8, 32, 64])
@pytest.mark.parametrize("name", CERTIFIERS)
def test_the_mean_of_a_constant_image_is_within_the_tolerance(name, side):
    """Every addition is rounded in the same direction, as sums of independent errors are not."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2)).eval()
    model[3].weight.data = torch.tensor([[1.0], [0.0]])
    for value in torch.linspace(0.31, 0.94, 12).tolist():
        lowest = float(torch.tensor(value).double()) - 0.03
        model[3].bias.data = torch.tensor([0.0, lowest * (1 + 2e-6)])  # the least margin is -2e-6 of the mean
        x = torch.full((1, 1, side, side), value)
        assert not certificate(name, model, x, torch.tensor([0]), ThreatModel("Linf", 0.03)).certified.any()


@pytest.mark.parametrize("name", CERTIFIERS)
def test_small_logits_are_certified_like_large_ones(name):
    """The squares of their coefficients underflow in float32."""
    model, x = mlp(64, 16, 3), images((1, 8, 8), 100, 1).float()
    y = model(x).argmax(dim=1)
    threat = ThreatModel("L2", 0.15 if name == "ibp" else 0.5)
    large = certificate(name, model, x, y, threat).certified
    assert 0 < large.sum() < 100
    model[-1].weight.data *= 2.0**-76
    model[-1].bias.data *= 2.0**-76
    assert torch.equal(certificate(name, model, x, y, threat).certified, large)


def test_certifiers_compute_without_tf32(monkeypatch):
    """Its products have errors 8,000 times those of float32."""
    seen = []

    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    class Watched(IBP):
        def margins(self, *given):
            seen.append(settings())
            return super().margins(*given)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before, x = torch.get_float32_matmul_precision(), torch.rand(1, 1, 2, 2)
    torch.set_float32_matmul_precision("high")
    try:
        batch = Batch(x, torch.tensor([0]), torch.arange(1))
        Watched()(linear_model((1, 2, 2), 2), batch, ThreatModel("Linf", 0.1), generator=torch.Generator())
        assert settings() == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {("highest", False)}


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@pytest.mark.parametrize("name", CERTIFIERS)
def test_the_tolerance_is_small(name, box):
    """Else nothing would be certified: some 1e-6 of the logits' size in float32, 1e-14 in float64."""
    model, x = mlp(16, 32, 32, 3), images((1, 4, 4), 4, 1).float()
    threat = ThreatModel("Linf", 0.01, box)
    y = model(x).argmax(dim=1)
    size = model(x).abs().max()
    single = certificate(name, model, x, y, threat).tolerance
    double = certificate(name, model.double(), x.double(), y, threat).tolerance
    assert (single > 0).all()
    assert single.max() < 2e-4 * size
    assert (double > 0).all()
    assert double.max() < 1e-12 * size


def nearly_at(wanted, norm, *, hidden):
    """A model whose margin over the ball of 0.1 around one image is `wanted` in real numbers, but for some 1e-13.

    A bias in float32 takes most of the margin away, and another one, much smaller, the rest of it.
    """
    shape, eps = (1, 2, 2), 0.1 * (1 + TOLERANCE)
    model = linear_model(shape, 2)
    batch = interior_batch(model, shape, 1)
    y = int(batch.y)
    model.append(nn.ReLU() if hidden else nn.Identity()).append(nn.Linear(2, 2))
    first, second = model[1], model[3]
    first.bias.data.fill_(8.0)  # so that every unit is always on
    second.weight.data = torch.eye(2)
    second.bias.data.zero_()
    exact = exact_margin(copy.deepcopy(model).double(), batch, ThreatModel(norm, eps)).item()
    first.bias.data[y] = float(np.float32(8.0 - exact))
    rest = wanted - exact - (float(first.bias.data[y]) - 8.0)
    assert abs(rest) < 1e-6
    second.bias.data[y] = rest
    return model, batch.x, batch.y


@pytest.mark.parametrize(("name", "hidden"), [("fast-lin", True), ("crown", True), ("crown-ibp", True), ("ibp", False)])
@pytest.mark.parametrize("norm", ["Linf", pytest.param("L2", marks=pytest.mark.slow), "L1"])
@pytest.mark.parametrize("wanted", [1e-9, -1e-9])
def test_what_float32_leaves_in_doubt_float64_decides(name, hidden, norm, wanted):
    model, x, y = nearly_at(wanted, norm, hidden=hidden)
    threat = ThreatModel(norm, 0.1)
    with torch.no_grad():
        assert rounded(name, model, x, y, threat)[0].item() < 1e-5
    result = certificate(name, model, x, y, threat)
    assert result.margins.dtype == x.dtype
    assert result.margins.amin().item() == pytest.approx(wanted, abs=1e-12)
    assert 0 < result.tolerance.item() < 1e-12
    assert bool(result.certified) == (wanted > 0)
    assert result.radius.tolist() == ([np.float32(0.1)] if wanted > 0 else [0.0])
    double = certificate(name, model.double(), x.double(), y, threat)
    assert bool(double.certified) == (wanted > 0)


def test_a_margin_within_the_rounding_of_float64_is_no_certificate():
    model, x, y = nearly_at(1e-9, "Linf", hidden=True)
    with torch.no_grad():
        model[3].bias.data[y] -= certificate("crown", model, x, y, ThreatModel("Linf", 0.1)).margins.amin()
    result = certificate("crown", model, x, y, ThreatModel("Linf", 0.1))
    assert result.margins.amin().abs() <= result.tolerance
    assert not result.certified


def test_a_positive_margin_within_its_rounding_is_no_certificate():
    model, x, y = nearly_at(1e-9, "Linf", hidden=True)
    model, x, threat = model.double(), x.double(), ThreatModel("Linf", 0.1)
    first = certificate("crown", model, x, y, threat)
    for share, certified in ((0.5, False), (3.0, True)):
        with torch.no_grad():
            model[3].bias[y] -= certificate("crown", model, x, y, threat).margins.amin() - share * first.tolerance[0]
        result = certificate("crown", model, x, y, threat)
        assert result.margins.amin() > 0
        assert bool(result.certified) == certified


def test_in_a_batch_only_what_is_in_doubt_changes():
    """With an eps for each example, which go along when some of them are computed again."""
    model, near, y = nearly_at(1e-9, "Linf", hidden=True)
    x = torch.cat([near, near, near, 1 - near, near])
    labels = torch.cat([y, y, y, y, 1 - y])
    eps = torch.tensor([0.05, 0.1, 0.2, 0.1, 0.1]).double()
    eps[1] = 0.1
    result = certificate("crown", model, x, labels, ThreatModel("Linf", eps))
    alone = [
        certificate("crown", model, x[k : k + 1], labels[k : k + 1], ThreatModel("Linf", float(eps[k])))
        for k in range(5)
    ]
    assert result.certified.tolist()[:3] == [True, True, False]
    assert result.certified.tolist() == [bool(each.certified) for each in alone]
    torch.testing.assert_close(result.radius, torch.where(result.certified, eps.float(), 0))
    torch.testing.assert_close(result.margins, torch.cat([each.margins for each in alone]))
    torch.testing.assert_close(result.tolerance, torch.cat([each.tolerance for each in alone]), rtol=0.5, atol=0)
    assert result.status == ["certified" if safe else "open" for safe in result.certified]


def test_infinite_logits_are_not_certified():
    model, x, y = nearly_at(1e-9, "Linf", hidden=True)
    for value in (torch.inf, torch.nan, 3e38):
        broken = copy.deepcopy(model)
        broken[3].bias.data[y] = value
        broken[3].weight.data *= 1e38
        try:
            result = certificate("crown", broken, x, y, ThreatModel("Linf", 0.1))
        except UserError:
            continue
        assert not result.certified


@pytest.mark.slow
@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the paper's checkpoints are not here")
@pytest.mark.parametrize(
    ("file", "model", "norm", "eps"),
    [
        ("mnist_fc1_l1_kw", "fc1", "Linf", 0.1),
        ("mnist_fc1_l2_c-per", "fc1", "L2", 0.3),
        ("mnist_cnn_l1_c-per", "cnn", "Linf", 0.1),
        ("mnist_cnn_l1_at", "cnn", "Linf", 0.1),
    ],
)
def test_float32_is_as_near_on_trained_models(file, model, norm, eps):
    net = trained(CHECKPOINTS / f"{file}.ckpt", model)
    x = torch.rand((6, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    x = torch.where(x < 0.8, 0.0, x)
    y = net(x).argmax(dim=1)
    for name in ("ibp", "fast-lin", "crown-ibp"):
        difference, stated = rounded(name, net, x, y, ThreatModel(norm, eps))
        assert (difference <= stated).all(), (name, (difference / stated).max())


def trained(path, spec):
    """The weights in the order of the file are those of our layers in their order."""
    model = parse_spec(spec, registry.model).make((1, 28, 28), 10)
    values = list(torch.load(path, weights_only=True, map_location="cpu").values())
    ours = model.state_dict()
    model.load_state_dict({name: value.view_as(ours[name]) for name, value in zip(ours, values, strict=True)})
    return model.eval().requires_grad_(False)
