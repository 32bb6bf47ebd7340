"""Tracing a model: what it finds, that the bounds of what it found are sound, and what it refuses in one line."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from bench.core import registry
from bench.core.contracts import Batch, frozen
from bench.core.errors import UserError
from bench.core.layers import Normalize, Residual
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from bench.training.subnet import mask_layers
from certifiers import activations, joins, layers
from certifiers.crown import Crown, CrownIBP, FastLin
from certifiers.ibp import IBP
from certifiers.linear_bounds import linear_bounds
from certifiers.network import Network, in_float64
from tests.networks import drawn_weights, images, margins_at, points

ALL = (IBP(), FastLin(), Crown(), CrownIBP())


def sound(model, shape, eps=0.05, norm="Linf", certifiers=ALL):
    """The bounds of a model in double precision hold at sampled and attacked points, and are tight for a tiny eps."""
    model = model.double().eval().requires_grad_(False)
    x = images(shape, 2, 0)
    y = model(x).argmax(dim=1)
    for size in (eps, 1e-7):
        threat = ThreatModel(norm, size)
        least = margins_at(model, points(model, x, y, threat, 200), y).amin(dim=0)
        slack = 1e-9 * (1 + least[least.isfinite()].abs().max())
        for certifier in certifiers:
            found = certifier.margins(Network(model, x[:1]), x, y, threat)
            assert (found <= least + slack).all(), type(certifier).__name__
            if size < eps:
                torch.testing.assert_close(found, least, atol=1e-3, rtol=1e-3)


class Model(nn.Module):
    """Anything: `forward(self, x)`, with a few layers at hand."""

    def __init__(self, forward):
        super().__init__()
        self.run = forward
        self.first, self.second, self.output = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.conv, self.norm, self.act = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh()
        drawn_weights(self, 0, 1.0)

    def forward(self, x):
        return self.run(self, x)


def aliased(m, x):
    h = m.first(x.flatten(1))
    kept = h
    h += torch.tanh(h)
    return m.output(F.relu(h) + kept)


FORWARDS = {
    "F.relu": lambda m, x: m.output(F.relu(m.first(torch.flatten(x, 1)))),
    "torch.relu": lambda m, x: m.output(torch.relu(m.first(x.flatten(1)))),
    "x.relu": lambda m, x: m.output(m.first(x.flatten(start_dim=1)).relu()),
    "view": lambda m, x: m.output(F.relu(m.first(x.view(x.size(0), -1)))),
    "view by shape": lambda m, x: m.output(F.relu(m.first(x.view(x.shape[0], -1)))),
    "reshape": lambda m, x: m.output(F.relu(m.first(x.reshape(-1, 8)))),
    "tanh": lambda m, x: m.output(torch.tanh(m.second(F.tanh(m.first(x.flatten(1)))))),
    "sigmoid": lambda m, x: m.output(torch.sigmoid(m.second(F.sigmoid(m.first(x.flatten(1)))))),
    "one module twice": lambda m, x: m.output(m.act(m.second(m.act(m.second(m.act(m.first(x.flatten(1)))))))),
    "sum": lambda m, x: (lambda h: m.output(F.relu(m.second(h) + h)))(torch.relu(m.first(x.flatten(1)))),
    "torch.add": lambda m, x: (lambda h: m.output(F.relu(torch.add(h, m.second(h)))))(
        torch.relu(m.first(x.flatten(1)))
    ),
    "sum of three": lambda m, x: (lambda h: m.output(m.second(h) + h + m.act(h)))(m.first(x.flatten(1))),
    "sum with the image": lambda m, x: m.output(m.first((F.relu(m.norm(m.conv(x))) + x).flatten(1))),
    "activation of the image": lambda m, x: m.output(F.relu(m.first(m.act(x).flatten(1)))),
    "activations in a row": lambda m, x: m.output(torch.tanh(F.relu(torch.sigmoid(m.first(x.flatten(1)))))),
    "sum of logits": lambda m, x: (lambda h: m.output(h) + m.output(m.act(h)))(m.first(x.flatten(1))),
    "back to an image": lambda m, x: m.output(m.first(m.act(m.conv(x.flatten(1).view(-1, 2, 2, 2))).flatten(1))),
    "product with a number": lambda m, x: m.output(torch.relu(m.first(x.flatten(1)) * 2)),
    "difference": lambda m, x: (lambda h: m.output(torch.relu(h - m.second(h))))(m.first(x.flatten(1))),
    "scaled sum": lambda m, x: (lambda h: m.output(torch.relu(torch.add(h, m.second(h), alpha=2))))(
        m.first(x.flatten(1))
    ),
    "sum with a number": lambda m, x: m.output(torch.relu(1 - m.first(x.flatten(1)) + 2)),
    "sum with a weight": lambda m, x: m.output(torch.relu(m.first(x.flatten(1)) + m.first.bias / 2)),
    "normalization by hand": lambda m, x: m.output(
        torch.relu(m.first(((x - 0.4) / torch.tensor([0.2, 0.3]).view(1, 2, 1, 1).to(x)).flatten(1)))
    ),
    "in place": lambda m, x: aliased(m, x),
    "what is not used": lambda m, x: (lambda h, _: m.output(m.act(h)))(m.first(x.flatten(1)), torch.relu(m.conv(x))),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_forwards_as_people_write_them(name):
    sound(Model(FORWARDS[name]), (2, 2, 2), 0.1)


class Double(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Wide(nn.Conv2d):
    def __init__(self, fan_in, fan_out):
        super().__init__(fan_in, fan_out, 3, padding=1)


def hooked(hook):
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].register_forward_hook(hook)
    return model


def patched():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].forward = lambda x: torch.tanh(x) - 0.3
    return model


def after(*middle, features=8):
    """Layers on images of two channels, then a linear layer."""
    return nn.Sequential(nn.Conv2d(2, 2, 1), *middle, nn.Flatten(), nn.Linear(features, 3))


MODULES = {
    "subclass with a forward of its own": nn.Sequential(nn.Flatten(), Double(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    "subclass with other defaults": nn.Sequential(Wide(2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    "hook": hooked(lambda *call: 2 * call[2] - 0.1),
    "forward of an instance": patched(),
    "max pooling": after(nn.MaxPool2d(2), features=2),
    "max pooling of overlapping windows": after(nn.ReLU(), nn.MaxPool2d(2, 1), features=2),
    "max pooling with a border": after(nn.MaxPool2d(3, 2, padding=1), nn.Tanh(), features=2),
    "global max pooling": after(nn.AdaptiveMaxPool2d(1), features=2),
    "adaptive pooling": after(nn.AdaptiveAvgPool2d((1, 2)), nn.ReLU(), features=4),
    "adaptive to its size": after(nn.AdaptiveAvgPool2d((None, 1)), nn.ReLU(), features=4),
    "padding by name": after(nn.Conv2d(2, 2, 3, padding="same"), nn.ReLU()),
    "padding by name, even": after(nn.Conv2d(2, 2, 2, padding="same"), nn.ReLU()),
    "padding": after(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 1, 2), nn.ReLU()),
    "transposed convolution": after(nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), nn.ReLU(), features=64),
    "rising on the left": after(nn.LeakyReLU(-0.1)),
    "steeper on the left": after(nn.LeakyReLU(1.5)),
    "prelu": after(nn.PReLU(2)),
    "gelu": after(nn.GELU(), nn.GELU("tanh")),
    "silu": after(nn.SiLU()),
    "elu": after(nn.ELU(0.7), nn.SELU(), nn.CELU(2.0)),
    "softplus": after(nn.Softplus(), nn.Softplus(3.0)),
    "clamped": after(nn.Hardtanh(-0.2, 0.3), nn.ReLU6(), nn.Hardsigmoid()),
    "data parallel": nn.DataParallel(after(nn.ReLU())),
    "inside data parallel": nn.Sequential(Normalize((0.2, 0.7), (0.5, 0.1)), nn.DataParallel(after(nn.ReLU()))),
    "sequential": nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    "nested": nn.Sequential(nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(8, 6), nn.Tanh())), nn.Linear(6, 3)),
    "normalize": nn.Sequential(
        Normalize((0.2, 0.7), (0.5, 0.1)), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ),
    "dropout and identity": nn.Sequential(
        nn.Identity(),
        nn.Flatten(),
        nn.Dropout(0.9),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(6, 3),
        nn.Identity(),
    ),
    "dropout of channels": nn.Sequential(nn.Conv2d(2, 3, 1), nn.Dropout2d(), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    "residual": nn.Sequential(
        Residual(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()), nn.Conv2d(2, 3, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
    "residual of residuals": nn.Sequential(
        Residual(Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())), nn.BatchNorm2d(2)),
        nn.LeakyReLU(0.3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(2, 3),
    ),
    "in place": nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(8, 3)),
    "two classes": nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 2)),
    "ends in an activation": nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Tanh()),
    "batch norm without weights": nn.Sequential(
        nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 3)
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("norm", ["Linf", pytest.param("L2", marks=pytest.mark.slow)])
def test_modules(name, norm):
    model = copy.deepcopy(MODULES[name])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            drawn_weights(module, 0, 1.0)
    sound(model, (2, 2, 2), 0.1, norm)


MODELS = [
    ("small-cnn:width=2:hidden=8:batchnorm=true", (1, 8, 8)),
    ("small-cnn:width=2:hidden=8:activation=tanh", (1, 7, 9)),
    ("cnn:width=2:activation=sigmoid", (3, 9, 11)),
    ("fc1:width=20", (1, 4, 4)),
    pytest.param("resnet18:width=2", (3, 8, 8), marks=pytest.mark.slow),
    pytest.param("preact-resnet18:width=2", (3, 8, 8), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("spec", "shape"), MODELS)
def test_registered_models(spec, shape):
    torch.manual_seed(0)
    model = parse_spec(spec, registry.model).make(shape, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            drawn_weights(module, 0, 1.0)
    deep = "resnet" in spec
    sound(model, shape, 1e-3 if deep else 0.02, certifiers=(CrownIBP(), IBP()) if deep else (IBP(), FastLin(), Crown()))


def test_masked_layers():
    """A parametrized weight is read as it is used, mask and all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
    mask_layers(model, [10, 30], 1.0, "score")
    sound(model, (1, 3, 3), 0.1)
    with parametrize.cached():
        sound(model, (1, 3, 3), 0.1)
    x, y = images((1, 3, 3), 2, 0), torch.tensor([0, 1])
    scores = [parameter.requires_grad_() for name, parameter in model.named_parameters() if "scores" in name]
    margin = linear_bounds(model, x, y, ThreatModel("Linf", 0.1)).margin.sum()
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(margin, scores))


def test_a_model_in_train_mode_stays_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(12, 3)
    )
    x, y, threat = images((1, 3, 3), 2, 0).float(), torch.tensor([0, 1]), ThreatModel("Linf", 0.1)
    before = copy.deepcopy(model.state_dict())
    found = linear_bounds(model.train(), x, y, threat)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found.margin, linear_bounds(model.eval(), x, y, threat).margin)


class Noise(nn.Module):
    def forward(self, x):
        return x * torch.rand_like(x)


def with_(*middle, features=8):
    return lambda: nn.Sequential(*middle, nn.Flatten(), nn.Linear(features, 3))


REFUSED = {
    "softmax": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 3), nn.Softmax(dim=1)), ["'2'", "Softmax"]),
    "reflecting": (with_(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), ["'0'", "Conv2d", "reflection_pad2d"]),
    "ceil mode": (with_(nn.AvgPool2d(2, ceil_mode=True), features=2), ["'0'", "AvgPool2d"]),
    "uneven means": (with_(nn.AvgPool2d(2, padding=1, count_include_pad=False)), ["'0'", "AvgPool2d"]),
    "no statistics": (with_(nn.BatchNorm2d(2, track_running_stats=False)), ["'0'", "BatchNorm2d"]),
    "linear on images": (with_(nn.Linear(2, 2)), ["'0'", "Linear"]),
    "flow": (lambda: Model(lambda m, x: m.output(m.first(x.flatten(1))) if x.sum() > 0 else x), ["Model"]),
    "product of two": (
        lambda: Model(lambda m, x: m.output((lambda h: h * m.second(h))(m.first(x.flatten(1))))),
        ["'mul'"],
    ),
    "adaptive pooling": (with_(nn.Upsample(size=(3, 3)), nn.AdaptiveAvgPool2d(2)), ["'0'", "Upsample"]),
    "adaptive pooling that overlaps": (
        with_(nn.Conv2d(2, 2, 2, padding=1), nn.AdaptiveAvgPool2d(2)),
        ["'1'", "divide"],
    ),
    "ceil mode of a maximum": (with_(nn.MaxPool2d(3, 2, ceil_mode=True, padding=1)), []),
    "padding of a maximum": (with_(nn.MaxPool2d(2, padding=1), features=8), ["'0'", "MaxPool2d", "padding"]),
    "softplus that is concave": (with_(nn.Softplus(-1.0)), ["'0'", "beta=-1"]),
    "writes into the image": (with_(nn.ReLU(inplace=True)), ["'0'", "ReLU", "image"]),
    "indices": (
        lambda: Model(lambda m, x: m.output(m.first(F.max_pool2d(x, 1, return_indices=True)[1].flatten(1) * 1.0))),
        [],
    ),
    "sum that repeats": (
        lambda: Model(lambda m, x: m.output(m.first(x.flatten(1)) + m.norm(x).sum(1).sum(1)[:, :1])),
        [],
    ),
    "custom module": (lambda: nn.Sequential(Noise(), nn.Flatten(), nn.Linear(8, 3)), []),
    "permuted": (lambda: Model(lambda m, x: m.output(m.first(x.transpose(1, 2).flatten(1)))), ["'transpose'"]),
    "index": (lambda: Model(lambda m, x: m.output(F.pad(m.first(x.flatten(1))[:, :5], (0, 1)))), ["'slice'"]),
    "mixed images": (lambda: Model(lambda m, x: m.output(m.second(x.reshape(-1, 6)))), []),
    "images as one": (lambda: Model(lambda _, x: torch.flatten(x)), []),
    "an image": (lambda: nn.Sequential(nn.Conv2d(2, 2, 1)), ["logits"]),
    "two outputs": (lambda: Model(lambda m, x: (m.output(m.first(x.flatten(1))), x)), ["logits"]),
    "a dictionary": (lambda: Model(lambda m, x: {"logits": m.output(m.first(x.flatten(1)))}), ["logits"]),
    "nothing": (lambda: Model(lambda *_: None), ["logits"]),
    "other images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), []),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    """In one line that names the layer, and what can be bounded."""
    make, said = REFUSED[name]
    torch.manual_seed(0)
    model = make().double().eval().requires_grad_(False)
    for ask in (
        lambda: Network(model, images((2, 2, 2), 1, 0)),
        lambda: IBP().check_fits(model, (2, 2, 2), ThreatModel("Linf", 0.1)),
    ):
        with pytest.raises(UserError) as caught:
            ask()
        text = str(caught.value)
        assert "bounded" in text
        assert "\n" not in text
        assert len(text) < 250
        for each in said:
            assert each in text


def test_the_layers_that_are_found():
    model = nn.Sequential(
        Normalize((0.5,), (0.2,)), nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Identity(),
        Residual(nn.Conv2d(2, 2, 1)), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3),
    )  # fmt: skip
    network = Network(model.eval(), torch.rand(1, 1, 4, 4))
    kinds = [None, layers.Scale, layers.Conv, layers.Scale, activations.Rectifier, layers.Conv, joins.Add, layers.Conv]
    found = [node.layer if node.layer is None else type(node.layer) for node in network.nodes]
    assert found == [*kinds, layers.Reshape, layers.Linear]
    assert [node.shape for node in network.nodes] == [(1, 4, 4)] * 2 + [(2, 4, 4)] * 5 + [(2, 2, 2), (8,), (3,)]
    assert network.nodes[6].inputs == (5, 4)
    assert network.activations == [4]
    assert network.classes == 3
    assert network.is_linear(3)
    assert not network.is_linear(4)
    assert not network.is_linear(6)


def test_a_certifier_does_not_touch_the_model():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).train()
    before = copy.deepcopy(model.state_dict())
    x = images((1, 3, 3), 2, 0).float()
    batch = Batch(x, torch.tensor([0, 1]), torch.arange(2))
    CrownIBP()(model, batch, ThreatModel("Linf", 0.1), generator=torch.Generator())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_copy_in_float64_has_the_masked_weights_in_float64_also_where_torch_caches_them():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    mask_layers(model, [18, 4], 0.1, "score")
    with frozen(model):
        model(torch.rand(2, 1, 3, 3))  # fills the cache
        twin = in_float64(model)
        x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
        assert torch.equal(twin[0].weight, model[0].weight.double())
        assert torch.allclose(twin(x), model(x.float()).double(), atol=1e-6)
        assert Network(twin, x[:1])
    assert parametrize.is_parametrized(model[0])
    assert not any(parametrize.is_parametrized(module) for module in twin.modules())
