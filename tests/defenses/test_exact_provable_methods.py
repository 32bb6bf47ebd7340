"""One step of each method of certified training, against plain formulas, in float64."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.core.errors import UserError
from bench.testing.contracts import DefenseContract, tiny_model
from bench.training.interval_methods import initialize
from certifiers.linear_regions import plane_distances
from certifiers.network import Network
from defenses.mmr import hinge
from defenses.taps import TAPS, connected
from tests.defenses.exact_step import Step
from tests.defenses.one_hidden_layer import OneHiddenLayer

PLAIN = {"optimizer": "sgd", "clip_grad": 0.0}


def middle_of(name, **settings):
    """A step in the middle of a training of six steps."""
    step = Step(name, **(PLAIN | settings))
    step.loop.steps_done = 3
    return step


def bounds_of(step, eps, x=None, rows=slice(None)):
    return OneHiddenLayer(step.model, (step.x if x is None else x)[rows], step.y[rows], eps)


@pytest.mark.parametrize("loss", ["cross-entropy", "hinge"])
def test_kw(loss):
    step = middle_of("kw", ramp=1.0, loss=loss)
    margins = bounds_of(step, 0.75 * step.eps).linear(adaptive=False)
    own = torch.arange(10) == step.y[:, None]
    hinges = (1 - margins.masked_fill(own, torch.inf).amin(dim=1)).clamp(min=0)
    step.check(cross_entropy(-margins, step.y) if loss == "cross-entropy" else hinges.mean())


def test_kw_of_a_sub_sample_with_an_attack():
    step = middle_of("kw", ramp=0.5, subsample=5, attacked=0.7, steps=2)
    margins = bounds_of(step, step.eps, rows=slice(5)).linear(adaptive=False)
    attacked = cross_entropy(step.model(step.pgd(step.start(), steps=2)), step.y)
    step.check(cross_entropy(-margins, step.y[:5]) + 0.7 * attacked)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_crown_ibp(beta):
    step = middle_of("crown-ibp", warm_up=0.0, ramp=1.0, growth="linear", beta=beta, kappa=0.2, subsample=9)
    clean, share = cross_entropy(step.model(step.x), step.y), (1 + beta) / 2
    bounds = bounds_of(step, step.eps / 2, rows=slice(9))
    margins = share * bounds.linear(adaptive=True) + (1 - share) * bounds.interval()
    step.check(0.6 * clean + 0.4 * cross_entropy(-margins, step.y[:9]))


def test_ibp():
    step = middle_of("ibp", warm_up=0.0, ramp=0.5, subsample=9)
    clean = cross_entropy(step.model(step.x), step.y)  # first: it changes the statistics of batch norm
    margins = bounds_of(step, step.eps, rows=slice(9)).interval()
    step.check(0.5 * clean + 0.5 * cross_entropy(-margins, step.y[:9]))


def l1_of(model):
    return sum(model[k].weight.abs().sum() for k in (0, 4))


def test_sabr():
    step = middle_of("sabr", ramp=1.0, steps=2, step_size="0.25eps", share=0.4, l1=1e-3)
    whole = step.eps / 2
    step.eps = 0.6 * whole  # of the attack
    step.loop.generator, own = torch.Generator(), step.loop.generator
    step.loop.generator.set_state(own.get_state())
    threat = type(step.loop.threat)("Linf", step.eps)
    center = step.pgd(threat.random_start(step.x, step.generator), steps=2)
    margins = bounds_of(step, 0.4 * whole, x=center).interval()
    step.check(cross_entropy(-margins, step.y) + 1e-3 * l1_of(step.model))


@pytest.mark.parametrize("name", ["cc-ibp", "mtl-ibp", "exp-ibp"])
def test_expressive_losses(name):
    step = middle_of(name, ramp=0.5, steps=2, step_size="0.25eps", share=0.3, l1=0.0)
    logits = step.model(step.pgd(step.start(), steps=2))
    attacked, worst = logits - logits.gather(1, step.y[:, None]), -bounds_of(step, step.eps).interval()
    if name == "cc-ibp":
        loss = cross_entropy(0.7 * attacked + 0.3 * worst, step.y)
    else:
        low, high = (cross_entropy(each, step.y, reduction="none") for each in (attacked, worst))
        loss = (0.7 * low + 0.3 * high).mean() if name == "mtl-ibp" else (low**0.7 * high**0.3).mean()
    step.check(loss)


def test_taps():
    step = middle_of("taps", ramp=0.5, steps=3, step_size="0.3eps", connector=0.8, weight=3.0, subsample=9, l1=0.0)
    bounds, y, own = bounds_of(step, step.eps, rows=slice(9)), step.y[:9], step.model[-1]
    low, high = (each[:, None].expand(-1, 9, -1) for each in (bounds.low, bounds.high))  # a row for each wrong class
    places = torch.rand((9, 9, *step.model[:2](step.x).shape[1:]), generator=step.generator).flatten(2)
    others = torch.tensor([[j for j in range(10) if j != label] for label in y])

    def margins(units):
        logits = units.relu() @ own.weight.T + own.bias
        return torch.stack([logits[i, range(9), y[i]] - logits[i, range(9), others[i]] for i in range(9)])

    with torch.no_grad():
        width, points = high - low, low + places * (high - low)
    for _ in range(3):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(margins(points).sum(), points)
        with torch.no_grad():
            points = torch.maximum(torch.minimum(points - 0.15 * width * gradient.sign(), high), low)
    with torch.no_grad():
        near_low, near_high = ((1 - (points - side).abs() / (0.8 * width)).clamp(min=0) for side in (low, high))
    moving = points + near_low * (low - low.detach()) + near_high * (high - high.detach())
    attacked = torch.log1p((-margins(moving)).exp().sum(dim=1))
    worst = cross_entropy(-bounds.interval(), y, reduction="none")
    step.check((1.5 * attacked * worst.detach() + 0.5 * worst * attacked.detach()).mean())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.6, 1.0])
def test_the_connector_of_taps_moves_a_point_with_the_side_that_is_near(share):
    low, high = torch.tensor([[2.0, 3.0]], requires_grad=True), torch.tensor([[6.0, 3.0]], requires_grad=True)
    points = connected(torch.lerp(low, high, share).detach(), low, high, 0.5)
    assert torch.equal(points, torch.lerp(low, high, share))
    points.sum().backward()
    assert torch.allclose(low.grad, torch.tensor([[max(0.0, 1 - 2 * share), 0.0]]))
    assert torch.allclose(high.grad, torch.tensor([[max(0.0, 2 * share - 1), 0.0]]))


class Residual(torch.nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("layers", "classifier", "fact"),
    [
        ([torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)], 2, "classifier is 2; it must be at most 1"),
        ([Residual(torch.nn.Linear(4, 4), torch.nn.ReLU())], 1, "classifier is 1; it must be another number: not all"),
    ],
)
def test_a_part_that_is_no_classifier_is_refused_by_taps(layers, classifier, fact):
    network = Network(torch.nn.Sequential(torch.nn.Flatten(), *layers), torch.rand(1, 1, 2, 2))
    with pytest.raises(UserError, match=fact):
        TAPS(TAPS.config_class(classifier=classifier)).cut(network)


def gradients(values, x):
    """Of each column of values (B,N), with respect to its own image: (B,N,M)."""
    columns = [torch.autograd.grad(column.sum(), x, create_graph=True)[0].flatten(1) for column in values.T]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_distances_to_planes_are_those_of_the_gradients_at_the_image(norm):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 20)]
        model = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(20, 4)).double()
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0])
    switching, decisions = plane_distances(model, x, y, norm)
    x.requires_grad_()
    units = torch.cat([model[:1](x).flatten(1), model[:4](x)], dim=1)
    order = 1 if norm == "Linf" else 2
    assert torch.allclose(switching, units.abs() / gradients(units, x).norm(p=order, dim=2), rtol=1e-9)
    logits = model(x)
    margins = logits.gather(1, y[:, None]) - logits
    lengths = gradients(margins, x).norm(p=order, dim=2)
    others = torch.arange(4) != y[:, None]
    assert torch.allclose(decisions, (margins[others] / lengths[others]).view(5, 3), rtol=1e-9)
    weights = list(model.parameters())
    found = torch.autograd.grad(switching.sum() + decisions.sum(), weights)
    wanted = (units.abs() / gradients(units, x).norm(p=order, dim=2)).sum() + (margins[others] / lengths[others]).sum()
    for own, reference in zip(found, torch.autograd.grad(wanted, weights, materialize_grads=True), strict=True):
        assert torch.allclose(own, reference, rtol=1e-7, atol=1e-9)


def test_a_constant_function_has_no_plane():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[1].bias.fill_(-5)  # no unit is active
    switching, decisions = plane_distances(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), "L2")
    assert switching.isfinite().all()
    assert decisions.isposinf().all()
    (hinge(switching, 9.0, 3) + hinge(decisions, 9.0, 1)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_planes_need_relus():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    with pytest.raises(UserError, match="tanh has no linear regions"):
        plane_distances(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), "Linf")


@pytest.mark.parametrize("name", ["mmr", "mmr-at"])
def test_mmr(name):
    attack = {} if name == "mmr" else {"steps": 2, "step_size": "0.25eps", "attacked": 0.25}
    step = middle_of(name, weight=0.8, ramp=1.0, gamma_region="0.5eps", gamma_decision="3eps", batch_size=16, **attack)
    x = step.x
    if attack:
        part = step.x, step.y
        step.x, step.y = step.x[:4], step.y[:4]
        x_adv = step.pgd(step.start(), steps=2)
        step.x, step.y = part
        x = torch.cat([x_adv, step.x[4:]])
    loss = cross_entropy(step.model(x), step.y)
    frozen = copy.deepcopy(step.model).eval()  # a pass in train mode would change the statistics under the graph
    point, own = x.detach().requires_grad_(), list(frozen.parameters())
    units, logits = frozen[:2](point).flatten(1), frozen(point)
    margins = (logits.gather(1, step.y[:, None]) - logits)[torch.arange(10) != step.y[:, None]].view(16, 9)
    planes = [(units.abs() / gradients(units, point).abs().sum(dim=2)).sort(dim=1).values[:, : round(0.125 * 256)]]
    planes.append(margins / gradients(margins, point).abs().sum(dim=2))
    penalty = sum(
        (1 - distances / gamma).clamp(min=0).mean(dim=1)
        for distances, gamma in zip(planes, (0.5 * step.eps, 3 * step.eps), strict=True)
    )
    slopes = torch.autograd.grad(0.4 * penalty.mean(), own)
    weights = list(step.model.parameters())
    step.check(loss + sum((slope * weight).sum() for slope, weight in zip(slopes, weights, strict=True)))


def test_a_hinge_counts_the_nearest():
    assert hinge(torch.tensor([[0.3, 0.1, 2.0, -0.1]]), 0.2, 2).item() == pytest.approx((0.5 + 1.5) / 2)


def noise_of(step, *size):
    return torch.randn((*size, *step.x.shape), generator=step.generator).double()


def test_gaussian():
    step = Step("gaussian", sigma=0.5)
    step.check(cross_entropy(step.model(step.x + 0.5 * noise_of(step)), step.y))


def test_smooth_adv():
    step = Step("smooth-adv", sigma=0.5, samples=3, steps=2, step_size="0.4eps", ramp=1.0)
    step.loop.steps_done = 3
    noise, eps, x_adv = 0.5 * noise_of(step, 3), step.eps / 2, step.x
    for _ in range(2):
        point = x_adv.clone().requires_grad_()
        step.model.eval()
        p = torch.stack([step.model(point + each).softmax(dim=1) for each in noise]).mean(dim=0)
        (gradient,) = torch.autograd.grad(-p[torch.arange(len(step.y)), step.y].log().sum(), point)
        delta = x_adv + 0.4 * eps * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - step.x
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x_adv = (step.x + delta * (eps / length).clamp(max=1)).clamp(0, 1)
    step.model.train()
    noisy = torch.cat([x_adv + each for each in noise])  # one batch, for batch norm
    step.check(cross_entropy(step.model(noisy), step.y.repeat(3)))


def test_initial_weights_keep_the_width_of_intervals():
    model = tiny_model()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        initialize(model)
    assert model[4].weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / 256, rel=0.05)
    assert not model[4].bias.any()
    kept, own = (DefenseContract().make("sabr", interval_init=flag) for flag in ("false", "true"))
    before = tiny_model()[4].weight
    assert torch.equal(kept.build(tiny_model())[4].weight, before)
    with torch.random.fork_rng([]):
        assert not torch.equal(own.build(tiny_model())[4].weight, before)
