"""The settings `last_norm` and `binary`, alone and with other defenses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.config import as_json
from bench.core.errors import UserError
from bench.testing.contracts import CLASSES, DefenseContract, tiny_batch, tiny_model
from bench.training.architecture import Sign, latent, linear_layers, parametrizations_of
from defenses.binary_subnet import Config, FastConfig
from defenses.pgd_at import Config as PGDATConfig
from tests.defenses.exact_step import Step

NEED_FILES = {"finetune", "kd-swa"}
REFUSE_BINARY = {"binary-subnet", "binary-subnet-fast", "rst", "atmc"}
COMPOSE = [name for name in registry.defense.names() if name not in NEED_FILES | REFUSE_BINARY]


def gradients(
    last: nn.Linear, u: torch.Tensor, y: torch.Tensor, eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the loss, for the features u and for the logits below a last batch norm; eps None: without the norm."""
    u = u.clone().requires_grad_()
    logits = last(u)
    norm = nn.Identity() if eps is None else nn.BatchNorm1d(CLASSES, affine=False, eps=eps).double()
    loss = cross_entropy(norm(logits), y)
    return torch.autograd.grad(loss, (u, logits))


@pytest.fixture
def scaled():
    """A last layer, the same with 1,000 times its weights, features and labels."""
    torch.manual_seed(0)
    last = nn.Linear(20, CLASSES, bias=False).double()
    larger = copy.deepcopy(last)
    larger.weight.data *= 1000
    return last, larger, torch.rand(64, 20, dtype=torch.float64), torch.randint(CLASSES, (64,))


def test_below_a_last_norm_no_gradient_changes_when_the_last_weights_are_scaled(scaled):
    # thesis, Eq. 5.12 to 5.14
    last, larger, u, y = scaled
    none = 1e-300  # torch refuses an eps of 0; beside any variance this is 0
    (below, at), (below_larger, at_larger) = gradients(last, u, y, none), gradients(larger, u, y, none)
    assert torch.allclose(below_larger, below, rtol=0, atol=1e-10 * float(below.abs().max()))
    assert torch.allclose(1000 * at_larger, at, rtol=0, atol=1e-10 * float(at.abs().max()))


def test_the_eps_of_the_norm_is_all_that_parts_them(scaled):
    last, larger, u, y = scaled
    smallest = last(u).var(dim=0, unbiased=False).min()
    plain, stretched = gradients(last, u, y, 1e-5)[0], gradients(larger, u, y, 1e-5)[0]
    deviation = (stretched - plain).abs().max() / plain.abs().max()
    # a norm of variance v divides by sqrt(v + eps), which is off by eps / (2 v) of itself
    assert 1e-10 < deviation < 2 * 1e-5 / float(smallest.detach())


def test_without_a_last_norm_gradients_explode_or_vanish(scaled):
    last, larger, u, y = scaled
    below, below_larger = gradients(last, u, y, None)[0], gradients(larger, u, y, None)[0]
    right = larger(u).argmax(dim=1) == y
    assert below_larger[~right].norm() > 100 * below[~right].norm()
    y = larger(u).argmax(dim=1)
    sure = larger(u).topk(2, dim=1).values.diff(dim=1).abs().squeeze(1) > 50
    assert gradients(larger, u, y, None)[0][sure].norm() < 1e-9 * gradients(last, u, y, None)[0][sure].norm()


def test_a_config_without_the_settings_has_the_json_of_before():
    assert not {"last_norm", "binary"} & set(as_json(PGDATConfig()))
    assert {"last_norm", "binary"} <= set(as_json(PGDATConfig(last_norm=True, binary=True)))
    for config in (Config(), FastConfig()):
        assert not {"last_norm", "init", "score_start", "adversary", "step", "store_size"} & set(as_json(config))
    assert as_json(Config(last_norm=False))["last_norm"] is False


def test_a_sign_is_used_and_keeps_the_gradient():
    layer = nn.Linear(3, 2, bias=False)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Sign())
    latent(layer).data = torch.tensor([[0.5, -0.2, 0.0], [-1.0, 1.0, 0.3]])
    x = torch.rand(4, 3)
    assert torch.equal(layer.weight, torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]))
    layer(x).sum().backward()
    assert torch.allclose(latent(layer).grad, x.sum(dim=0).expand(2, 3))


def test_a_step_of_binaryconnect():
    step = Step("pgd-at", binary="true", last_norm="true", steps=2, lr=100.0)
    start = step.start()
    x_adv = step.pgd(start, steps=2)
    wanted = torch.autograd.grad(
        cross_entropy(step.model(x_adv), step.y), [latent(m) for m in linear_layers(step.model)]
    )
    before = [latent(layer).detach().clone() for layer in linear_layers(step.loop.model)]
    step.loop.defense.train_step(step.batch, step.loop)
    clipped = 0
    for old, layer, gradient in zip(before, linear_layers(step.loop.model), wanted, strict=True):
        moved = old - 100.0 * gradient
        assert torch.allclose(latent(layer), moved.clamp(-1, 1), atol=1e-9)
        clipped += int((moved.abs() > 1).sum())
    assert clipped


def test_the_last_norm_is_over_the_logits_and_has_an_affine_form():
    loop = DefenseContract().loop("trades", last_norm="true", epochs=1)
    norm = list(loop.model.modules())[-1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.affine
    before = norm.running_mean.clone()
    predictor, _ = loop.run()
    assert not torch.equal(norm.running_mean, before)
    x = tiny_batch().x
    inner = predictor[0](x)
    wanted = (inner - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    assert torch.allclose(predictor(x), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSE)
def test_every_adversarial_training_takes_both(name):
    loop = DefenseContract().loop(name, binary="true", last_norm="true", epochs=1)
    predictor, _ = loop.run()
    layers = linear_layers(predictor)
    assert layers
    for layer in layers:
        assert set(layer.weight.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert latent(layer).abs().max() <= 1
        assert isinstance(parametrizations_of(layer)[0], Sign)


@pytest.mark.parametrize("name", sorted(REFUSE_BINARY))
def test_methods_with_binary_weights_of_their_own_refuse_it(name):
    with pytest.raises(UserError, match="binary is True"):
        DefenseContract().loop(name, binary="true")


def test_plain_weights_have_no_parametrization():
    assert [parametrizations_of(layer) for layer in linear_layers(tiny_model())] == [(), ()]
