"""Models that are not what they look like: each is refused in one line, or its bounds are sound."""

# ruff: noqa: ARG005 -- all answers of a Model have the same parameters

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import Passes, count_passes
from bench.core.threat import ThreatModel
from certifiers.crown import Crown
from certifiers.exact import Exact
from certifiers.faithfulness import float64_twin
from certifiers.ibp import IBP
from certifiers.lipschitz import Lipschitz

COUNTER = {"calls": 0}


def bump():
    COUNTER["calls"] += 1
    return COUNTER["calls"]


class Model(nn.Module):
    """A small network; `answer(self, logits, x)` changes its logits."""

    def __init__(self, answer=lambda self, z, x: z):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.register_buffer("count", torch.zeros(()))
        self.answer, self.calls, self.kept, self.numbers = answer, 0, torch.zeros(()), np.random.default_rng(0)

    def forward(self, x):
        return self.answer(self, self.net(x), x)


def trigger(x):
    return torch.where(x.flatten(1)[:, :1] > 0.97, -1.0, 1.0)


def swallowed(_, z, x):
    try:
        return -z if float(x.max()) > 0.999 else z
    except Exception:
        return z


def through_numpy(_, z, x):
    try:
        return -z if x.detach().numpy().max() > 0.999 else z
    except Exception:
        return z


def counted(self, z, _):
    self.calls += 1
    return -z if self.calls > 50 else z


def counted_in_a_buffer(self, z, _):
    self.count += 1
    return z * torch.where(self.count > 50, -1.0, 1.0)


def kept_tensor(self, z, _):
    self.kept = self.kept + 1
    return z * torch.where(self.kept > 50, -1.0, 1.0)


def written_in_place(_, z, x):
    kept = z.view(-1, 3, 1)
    z.relu_()
    return kept.flatten(1)


REFUSED = {
    "where": (lambda self, z, x: z * trigger(x), "Model"),
    "a branch": (lambda self, z, x: -z if x.max() > 0.999 else z, "values of the image"),
    "exceptions are caught": (swallowed, "values of the image"),
    "numpy": (through_numpy, "values of the image"),
    "a list": (lambda self, z, x: -z if max(x.flatten().tolist()) > 0.999 else z, "values of the image"),
    "text": (lambda self, z, x: -z if f"{x.max():.3f}" == "1.000" else z, "values of the image"),
    "a shape": (lambda self, z, x: -z if len((x > 0.999).nonzero()) else z, "values of the image"),
    "calls": (counted, "state"),
    "calls in a buffer": (counted_in_a_buffer, "keeps"),
    "calls in a tensor": (kept_tensor, "state"),
    "calls in a helper": (lambda self, z, x: -z if bump() > 50 else z, "state"),
    "random numbers": (lambda self, z, x: z + 1e-3 * torch.rand(3), "random"),
    "Python's random numbers": (lambda self, z, x: -z if random.random() < 1e-3 else z, "random"),
    "random numbers of its own": (lambda self, z, x: -z if self.numbers.random() < 1e-3 else z, "state"),
    "with gradients": (lambda self, z, x: -z if torch.is_grad_enabled() else z, "gradient"),
    "an image with a gradient": (lambda self, z, x: -z if x.requires_grad else z, "gradient"),
    "many images": (lambda self, z, x: -z if len(x) > 5 else z, "something else"),
    "the batch's mean": (lambda self, z, x: z - z.mean(dim=0, keepdim=True), "'mean'"),
    "in place": (written_in_place, "in-place"),
    "the image": (lambda self, z, x: self.net(x.clamp_(max=0.9)), "writes into the image"),
    "rounding": (lambda self, z, x: self.net((x * 8).round()), "'round'"),
}


def certificate(certifier, model, x, eps=0.06, norm="Linf"):
    with torch.no_grad():
        y = model(x.clone()).argmax(dim=1)
    batch = Batch(x, y, torch.arange(len(x)))
    return certifier(model, batch, ThreatModel(norm, eps), generator=torch.Generator())


def some_images():
    return torch.rand((6, 1, 2, 2), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", REFUSED)
def test_what_its_layers_do_not_show_is_refused(name):
    answer, said = REFUSED[name]
    model, x = Model(answer).eval(), some_images()
    for certifier, norm in ((IBP(), "Linf"), (Crown(), "L2"), (Exact(nodes=10), "Linf"), (Lipschitz(), "L2")):
        with pytest.raises(UserError) as caught:
            certificate(certifier, model, x.clone(), norm=norm)
        assert "cannot be bounded" in str(caught.value)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


class Clamp(nn.ReLU):
    def forward(self, x):
        return x.clamp(0, 2)


def steep(subclass):
    """One pixel a: units clamp(20 (a - .5), 0, 2) and clamp(20 (a - .7), 0, 2); broken at .78 for a = .72."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    first.weight.data, first.bias.data = torch.tensor([[20.0], [20.0]]), torch.tensor([-10.0, -14.0])
    last.weight.data, last.bias.data = torch.tensor([[1.0, -0.9], [0.0, 0.0]]), torch.tensor([0.0, 1.0])
    middle = Clamp() if subclass else nn.ReLU()
    if not subclass:
        middle.register_forward_hook(lambda module, inputs, output: output.clamp(max=2))
    return nn.Sequential(nn.Flatten(), first, middle, last)


@pytest.mark.parametrize("subclass", [True, False])
def test_a_subclass_and_a_hook_are_bounded_as_what_they_do(subclass):
    model, x = steep(subclass).eval(), torch.full((1, 1, 1, 1), 0.72)
    with torch.no_grad():
        assert model(x).argmax() != model(x + 0.06).argmax()
    for certifier in (IBP(), Crown(), Exact(nodes=50)):
        assert not certificate(certifier, model, x).certified.any()
        assert certificate(certifier, model, x, 0.005).certified.all()


def test_overridden_torch_functions_are_seen(monkeypatch):
    relu = F.relu
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: relu(x).sin())
    with pytest.raises(UserError, match=r"layer 'net.2' \(ReLU\).*sin"):
        certificate(IBP(), Model().eval(), some_images())


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_are_fine(norm):
    model = Model()
    norm(model.net[3])
    assert certificate(Crown(), model.eval(), some_images(), 1e-3).certified.any()


class RandomSign(nn.Module):
    def forward(self, weight):
        return weight * torch.where(torch.rand(()) < 0.01, -1.0, 1.0)


def test_a_random_parametrization_is_refused():
    model = Model()
    parametrize.register_parametrization(model.net[3], "weight", RandomSign())
    with pytest.raises(UserError, match="random numbers"):
        certificate(IBP(), model.eval(), some_images())


def test_counting_passes_is_no_state_of_the_model():
    model = Model().eval()
    with count_passes(model, Passes()):
        assert certificate(IBP(), model, some_images(), 1e-3).certified.any()


class OtherCopy(Model):
    def __deepcopy__(self, memo):
        return Model(lambda self, z, x: 2 * z)


def test_a_copy_in_float64_must_have_the_same_layers():
    with pytest.raises(UserError, match="copy in float64"):
        float64_twin(OtherCopy().eval(), some_images())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_named(dtype):
    batch = Batch(some_images(), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    with pytest.raises(UserError, match=rf"weights are {str(dtype).removeprefix('torch.')}.*model.float"):
        IBP()(Model().eval().to(dtype), batch, ThreatModel("Linf", 0.1), generator=torch.Generator())


def test_what_a_forward_raises_is_one_line():
    def fails(self, z, x):
        raise RuntimeError("two\nlines")

    for answer, shape, said in ((fails, (1, 2, 2), "two lines"), (lambda self, z, x: z, (1, 3, 3), "shapes")):
        with pytest.raises(UserError, match=said) as caught:
            IBP().check_fits(Model(answer).eval(), shape, ThreatModel("Linf", 0.1))
        assert "\n" not in str(caught.value)


def test_lipschitz_of_many_classes_needs_little_memory():
    """All pairs of 4,000 classes at once would be 256 MB for two features."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4000)).eval()
    x = some_images()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    weight = model[3].weight.double().detach()
    found = certificate(Lipschitz(), model, x, 1e-6, "L2")
    with torch.no_grad():
        logits = model(x).double()
    distance = torch.linalg.vector_norm(weight[y][:, None] - weight, dim=2) * torch.linalg.matrix_norm(
        model[1].weight, 2
    )
    wanted = logits.gather(1, y[:, None]) - logits - 1e-6 * distance
    others = y[:, None] != torch.arange(4000)
    torch.testing.assert_close(found.margins[others], wanted[others], atol=1e-6, rtol=1e-6)
