"""No bound is ever violated: random networks of every layer, every norm, and points that try hard.

BOUNDS_NETWORKS and BOUNDS_POINTS set how many networks and points of each there are (the issue's bar: 500 and 10000).
"""

import math
import os
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import certifiers.linear_bounds
from bench.core.contracts import Batch
from bench.core.layers import Residual
from bench.core.threat import NORMS, TOLERANCE, ThreatModel
from certifiers.backward import propagate_backward
from certifiers.crown import Crown, CrownIBP, FastLin
from certifiers.ibp import IBP
from certifiers.input_regions import region_of
from certifiers.interval_bounds import interval_preactivation_bounds
from certifiers.linear_bounds import BoundedNetwork, linear_bounds
from certifiers.network import Network
from tests.linear import exact_margin, interior_batch, linear_model
from tests.networks import CURVED, drawn_weights, images, margins_at, networks, points, threats

NETWORKS, POINTS = int(os.environ.get("BOUNDS_NETWORKS", "40")), int(os.environ.get("BOUNDS_POINTS", "1000"))
DOUBLES = 1e-9  # what rounding may do in double precision, relative to the largest logit
EXAMPLES = 3
CERTIFIERS = {
    "ibp": IBP(),
    "fast-lin": FastLin(),
    "crown": Crown(),
    "crown tight": Crown(relaxation="tight"),
    "crown exactly": Crown(relaxation="crown"),
    "crown-ibp": CrownIBP(),
    "crown-ibp tight": CrownIBP(relaxation="tight"),
}
KINDS = [(relaxation, kind) for relaxation in ("parallel", "adaptive", "tight", "crown") for kind in ("linear", "ibp")]
many = settings(max_examples=NETWORKS, deadline=None, derandomize=True, database=None)


def margins(name, model, x, y, threat):
    with torch.no_grad():
        return CERTIFIERS[name].margins(Network(model, x[:1]), x, y, threat)


def entering(model, x):
    """What enters every activation of a model, at points (N,B,C,H,W): [(N,B,*shape)], in the order of their calls."""
    found = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].unflatten(0, x.shape[:2])))
        for module in model.modules()
        if isinstance(module, CURVED)
    ]
    with torch.no_grad():
        model(x.flatten(0, 1))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.slow
@many
@given(networks(), threats(EXAMPLES), st.integers(0, 9))
def test_no_point_violates_a_bound(case, threat, seed):
    """In double precision, where rounding hides nothing: every margin, the linear functions themselves, and the bounds
    of what enters each activation."""
    model, shape, classes = case
    x = images(shape, EXAMPLES, seed)
    with torch.no_grad():
        y = model(x).argmax(dim=1) if seed else torch.arange(EXAMPLES) % classes
    found = points(model, x, y, threat, POINTS, seed)
    reached = margins_at(model, found, y)
    least = reached.amin(dim=0)
    slack = DOUBLES * (1 + least[least.isfinite()].abs().max())
    for name in CERTIFIERS:
        assert (margins(name, model, x, y, threat) <= least + slack).all(), name
    inputs = entering(model, found)
    for relaxation, intermediate in KINDS:
        network, region = Network(model, x[:1]), region_of(x, threat)
        bounded = BoundedNetwork(network, relaxation, intermediate)
        bounds = bounded.bound(region, y)
        there = reached.gather(2, bounds.others.expand(len(found), -1, -1))
        for values, at in zip(there[:: len(there) // 100 + 1], found[:: len(there) // 100 + 1], strict=True):
            assert (bounds.at(at) <= values + slack).all(), (relaxation, intermediate)
        limits = bounded.preactivation_bounds(region)
        assert len(limits) == len(inputs)
        for (low, high), values in zip(limits.values(), inputs, strict=True):
            room = DOUBLES * (1 + values.abs().max())
            assert (values >= low - room).all(), (relaxation, intermediate)
            assert (values <= high + room).all(), (relaxation, intermediate)


@settings(many, max_examples=5)
@given(networks(), threats(EXAMPLES), st.integers(0, 9))
def test_no_point_violates_a_certificate_of_a_few_networks(case, threat, seed):
    assert_no_certificate_is_violated(case, threat, seed)


@pytest.mark.slow
@settings(many, max_examples=max(1, NETWORKS // 2))
@given(networks(), threats(EXAMPLES), st.integers(0, 9))
def test_no_point_violates_a_certificate(case, threat, seed):
    assert_no_certificate_is_violated(case, threat, seed)


def assert_no_certificate_is_violated(case, threat, seed):
    """In float32, as it is used: if a margin is above its tolerance, so is the true one."""
    model, shape, _ = case
    x = images(shape, EXAMPLES, seed).float()
    with torch.no_grad():
        y = model(x.double()).argmax(dim=1)
    least = margins_at(model, points(model, x.double(), y, threat, POINTS // 4, seed), y).amin(dim=0)
    batch, single = Batch(x, y, torch.arange(EXAMPLES)), model.float()
    for name, certifier in CERTIFIERS.items():
        with torch.no_grad():
            certificate = certifier.certify(single, batch, threat, generator=torch.Generator())
        assert (certificate.margins <= least.float() + certificate.tolerance[:, None]).all(), name
        assert (least[certificate.certified] > 0).all(), name
        eps = threat.eps_like(x).flatten().float().expand(EXAMPLES)
        assert certificate.radius.tolist() == torch.where(certificate.certified, eps, 0).tolist()
    model.double()


def mlp(sizes, seed=0, curve=nn.ReLU):
    layers = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), curve()]
    return drawn_weights(nn.Sequential(*layers[:-1]).double().eval(), seed, 1.5)


def algorithm_31(model, x, y, eps, order, adaptive):
    """Algorithm 3.1 (and CROWN's lower slope), one dense matrix after the other: the margins (B,K) without a box."""
    weights = [(m.weight, m.bias) for m in model if isinstance(m, nn.Linear)]
    result = torch.full((len(x), weights[-1][0].shape[0]), math.inf, dtype=x.dtype)
    for example, (image, label) in enumerate(zip(x.flatten(1), y.tolist(), strict=True)):
        limits = []

        def lower(head, shift, upto, image=image, limits=limits):
            """The least of head @ z_upto + shift."""
            for k in range(upto, -1, -1):
                weight, bias = weights[k]
                if k < upto:
                    low, high = limits[k]
                    across = (low < 0) & (high > 0)
                    slope = torch.where(across, high / (high - low), (low >= 0).to(x.dtype))
                    up = torch.where(across, -slope * low, 0.0)
                    down = (high > -low).to(x.dtype) if adaptive else slope
                    plus, minus = head.clamp(min=0), head.clamp(max=0)
                    shift = shift + minus @ up
                    head = plus * down + minus * slope
                shift = shift + head @ bias
                head = head @ weight
            return head @ image + shift - eps * torch.linalg.vector_norm(head, ord=order, dim=1)

        for k, (weight, _) in enumerate(weights[:-1]):
            eye = torch.eye(len(weight), dtype=x.dtype)
            limits.append((lower(eye, 0.0, k), -lower(-eye, 0.0, k)))
        eye = torch.eye(result.shape[1], dtype=x.dtype)
        others = [j for j in range(len(eye)) if j != label]
        result[example, others] = lower(eye[label] - eye[others], 0.0, len(weights) - 1)
    return result


@pytest.mark.parametrize(("norm", "order"), [("Linf", 1), ("L2", 2), ("L1", math.inf)])
@pytest.mark.parametrize("name", ["fast-lin", "crown"])
def test_linear_bounds_are_those_of_the_algorithm(name, norm, order):
    model, x = mlp([6, 8, 7, 5, 3]), images((1, 2, 3), 4, 0)
    y = torch.tensor([0, 1, 2, 0])
    eps = 0.2
    wanted = algorithm_31(model, x, y, eps * (1 + TOLERANCE), order, adaptive=name == "crown")
    torch.testing.assert_close(margins(name, model, x, y, ThreatModel(norm, eps, None)), wanted)


def intervals_by_hand(model, low, high):
    """Eq. 3.8, unit by unit, with the positive and the negative weights apart; the last layer is left out."""
    for module in list(model)[:-1]:
        if isinstance(module, nn.Linear | nn.Conv2d):
            plus, minus = nn.Parameter(module.weight.clamp(min=0)), nn.Parameter(module.weight.clamp(max=0))
            if isinstance(module, nn.Linear):
                affine = nn.functional.linear
            else:
                affine = lambda x, w, b=None, m=module: nn.functional.conv2d(x, w, b, m.stride, m.padding)  # noqa: E731
            low, high = (
                affine(low, plus, module.bias) + affine(high, minus),
                affine(high, plus, module.bias) + affine(low, minus),
            )
        else:
            low, high = module(low), module(high)
    return low, high


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
def test_ibp_is_interval_arithmetic(box):
    conv = [nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2, stride=2), nn.ReLU()]
    model = nn.Sequential(*conv, nn.Flatten(), nn.Linear(12, 6), nn.LeakyReLU(0.1), nn.Linear(6, 4)).double().eval()
    drawn_weights(model, 1, 1.0)
    x, y, eps = (
        images((1, 4, 6), 5, 2),
        torch.tensor([0, 3, 1, 3, 2]),
        torch.tensor([0.01, 0.1, 0.2, 0.0, 0.4]).double(),
    )
    reach = (eps * (1 + TOLERANCE)).view(-1, 1, 1, 1)
    low, high = x - reach, x + reach
    if box is not None:
        low, high = low.clamp(*box), high.clamp(*box)
    low, high = intervals_by_hand(model, low, high)
    merged = model[-1].weight[y][:, None] - model[-1].weight[None]
    wanted = (merged.clamp(min=0) * low[:, None] + merged.clamp(max=0) * high[:, None]).sum(dim=2)
    wanted = wanted + model[-1].bias[y][:, None] - model[-1].bias
    wanted = wanted.scatter(1, y[:, None], math.inf)
    torch.testing.assert_close(margins("ibp", model, x, y, ThreatModel("Linf", eps, box)), wanted)
    limits = interval_preactivation_bounds(Network(model, x[:1]), region_of(x, ThreatModel("Linf", eps, box)))
    assert len(limits) == 3


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_ibp_bounds_the_first_layer_over_the_ball(norm):
    """Algorithm 3.2, lines 2 and 3: with the dual norm of the weights, not over the box around the ball."""
    model, x, y = mlp([6, 8, 3]), images((1, 2, 3), 4, 0), torch.tensor([0, 1, 2, 0])
    first, last = model[1], model[3]
    reach = 0.3 * (1 + TOLERANCE) * torch.linalg.vector_norm(first.weight, ord=2 if norm == "L2" else math.inf, dim=1)
    low, high = (first(x.flatten(1)) - reach).relu(), (first(x.flatten(1)) + reach).relu()
    merged = last.weight[y][:, None] - last.weight[None]
    wanted = (merged.clamp(min=0) * low[:, None] + merged.clamp(max=0) * high[:, None]).sum(dim=2)
    wanted = (wanted + last.bias[y][:, None] - last.bias).scatter(1, y[:, None], math.inf)
    torch.testing.assert_close(margins("ibp", model, x, y, ThreatModel(norm, 0.3, None)), wanted)


@pytest.mark.parametrize("name", CERTIFIERS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per_example", [False, True])
def test_margins_of_linear_models_are_exact(name, norm, per_example):
    """And that costs the tolerance of eps, no more."""
    shape = (2, 3, 4)
    model = linear_model(shape, 5)
    batch = interior_batch(model, shape, 6)
    eps = torch.linspace(0.01, 0.1, 6).double() if per_example else 0.07
    at = [ThreatModel(norm, float(each), (0.0, 1.0)) for each in torch.as_tensor(eps).reshape(-1).expand(6)]
    one = lambda k: Batch(batch.x[k : k + 1], batch.y[k : k + 1], batch.index[k : k + 1])  # noqa: E731
    wanted = torch.cat([exact_margin(model, one(k), each) for k, each in enumerate(at)])
    found = margins(name, model.double(), batch.x.double(), batch.y, ThreatModel(norm, eps)).amin(dim=1)
    assert (found <= wanted).all()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CERTIFIERS)
def test_a_linear_model_in_a_corner_of_the_box(name):
    """Linf: the box cuts the ball. L2 and L1: the better of the ball's bound and the whole box's."""
    shape = (1, 2, 3)
    model = linear_model(shape, 3).double()
    x = torch.tensor([[0, 0, 0, 1, 1, 1.0], [0, 0.5, 1, 0, 0.5, 1]]).double().view(2, *shape)
    y = torch.tensor([0, 1])
    weight = model[1].weight.detach()
    rows = (weight[y][:, None] - weight[None]).double()
    at_x = (rows * x.flatten(1)[:, None]).sum(dim=2)
    at_box = rows.clamp(max=0).sum(dim=2)
    for norm, order in (("Linf", 1), ("L2", 2), ("L1", math.inf)):
        for eps in (0.2, 1.0, 2.5):
            reach = eps * (1 + TOLERANCE)
            if norm == "Linf":
                low, high = (x - reach).clamp(0, 1).flatten(1)[:, None], (x + reach).clamp(0, 1).flatten(1)[:, None]
                wanted = (rows.clamp(min=0) * low + rows.clamp(max=0) * high).sum(dim=2)
            else:
                wanted = torch.maximum(at_x - reach * torch.linalg.vector_norm(rows, ord=order, dim=2), at_box)
            found = margins(name, model, x, y, ThreatModel(norm, eps))
            torch.testing.assert_close(found, wanted.scatter(1, y[:, None], math.inf))


def test_crown_ibp_is_crown_where_intervals_are_exact():
    """Behind one hidden layer; behind three it is worse."""
    x, y, threat = images((1, 2, 3), 5, 0), torch.tensor([0, 1, 2, 1, 0]), ThreatModel("Linf", 0.1)
    shallow, deep = mlp([6, 8, 3]), mlp([6, 8, 8, 8, 3])
    for name in ("", " tight"):
        torch.testing.assert_close(
            margins(f"crown-ibp{name}", shallow, x, y, threat), margins(f"crown{name}", shallow, x, y, threat)
        )
    worse, better = (margins(name, deep, x, y, threat) for name in ("crown-ibp", "crown"))
    assert worse[worse.isfinite()].mean() < better[better.isfinite()].mean() - 0.1


RESIDUAL = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1),
    nn.ReLU(),
    Residual(nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Tanh()), nn.Conv2d(4, 6, 1, stride=2)),
    nn.LeakyReLU(0.1),
    nn.Flatten(),
    nn.Linear(54, 7),
    nn.Sigmoid(),
    nn.Linear(7, 3),
).double()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["Linf", pytest.param("L2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("relaxation", "intermediate"), [*KINDS[:4], *(pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS[4:])]
)
def test_chunks_change_nothing(relaxation, intermediate, norm):
    model = drawn_weights(RESIDUAL.eval(), 3, 1.0)
    x, y = images((1, 6, 6), 7, 0), torch.arange(7) % 3
    region = region_of(x, ThreatModel(norm, torch.linspace(0.01, 0.3, 7)))
    bounded = BoundedNetwork(Network(model, x[:1]), relaxation, intermediate)
    whole = bounded.bound(region, y)
    for budget in (1, 3000, 20000, 10**9):
        parts = list(
            BoundedNetwork(Network(model, x[:1]), relaxation, intermediate, budget=budget).in_chunks(region, y)
        )
        assert len(parts) == (1 if budget == 10**9 else 7 if budget < 3000 else len(parts))
        assert torch.cat([rows for rows, _ in parts]).tolist() == list(range(7))
        for field in ("others", "A", "b", "margin"):
            torch.testing.assert_close(torch.cat([getattr(part, field) for _, part in parts]), getattr(whole, field))


def test_a_small_budget_holds_few_coefficients(monkeypatch):
    model = drawn_weights(RESIDUAL.eval(), 3, 1.0)
    x, y = images((1, 6, 6), 7, 0), torch.arange(7) % 3
    region = region_of(x, ThreatModel("Linf", 0.1))
    held = []

    def recorded(*arguments, **options):
        bound = propagate_backward(*arguments, **options)
        held.append(bound.peak)
        return bound

    monkeypatch.setattr(certifiers.linear_bounds, "propagate_backward", recorded)
    most = []
    for budget in (1, 10_000, 10**6):
        bounded = BoundedNetwork(Network(model, x[:1]), "parallel", budget=budget)
        size = bounded.chunk_size(region, y)
        assert size >= 1
        held.clear()
        bounded.preactivation_bounds(region)
        most.append((size, max(held)))
    assert most[0][0] == 1
    assert most[0][1] <= 9 * 36  # one channel of one example: 9 positions, 4 channels of 3x3
    assert most[1][1] <= 10_000 < most[2][1] <= 10**6
    assert most[2][0] > most[1][0]


@pytest.mark.parametrize(("relaxation", "intermediate"), KINDS)
@pytest.mark.parametrize(
    ("curve", "norm"),
    [
        (nn.Tanh, "L2"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (nn.ReLU, "Linf"),
                (nn.ReLU, "L2"),
                (nn.Sigmoid, "Linf"),
                (nn.Tanh, "L1"),
                (lambda: nn.LeakyReLU(0.2), "L2"),
            )
        ),
    ],
)
def test_gradients_are_those_of_finite_differences(curve, norm, relaxation, intermediate):
    """With respect to every weight, as provable training needs them."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), curve(), nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4), curve(), nn.Linear(4, 3)
    )
    model = drawn_weights(model.double().eval(), 4, 1.0).requires_grad_()
    x, y, threat = 0.3 + 0.4 * images((1, 3, 3), 2, 1), torch.tensor([0, 2]), ThreatModel(norm, 0.15)

    def margin():
        return linear_bounds(model, x, y, threat, relaxation=relaxation, intermediate=intermediate).margin

    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn((2, 2), generator=draw, dtype=torch.float64)
    weights, step = list(model.parameters()), 1e-6
    gradients = torch.autograd.grad((margin() * mixed).sum(), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            weight.data += sign * step * direction
            ends.append((margin() * mixed).sum().item())
            weight.data -= sign * step * direction
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2 / step, rel=1e-5, abs=1e-6)
