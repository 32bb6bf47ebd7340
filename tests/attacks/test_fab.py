import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from attacks.fab import FAB, norm_of, onto_plane
from bench.core import seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.passes import Passes, count_passes
from bench.core.threat import NORMS, ThreatModel
from tests.linear import exact_distance, interior_batch, linear_model

CPU = torch.device("cpu")
BOX = (0.0, 1.0)
MODES = [{"targeted": False}, {"targeted": True}]


def run(attack, threat, model, batch, seed=0):
    return attack(model, batch, threat, generator=seeds.generator(CPU, seed))


def wrong(model, x, y):
    with torch.no_grad():
        return model(x).argmax(dim=1) != y


def shortest_to_plane(x, w, value, norm):
    """The norm of the smallest d with w d = -value and x + d in [0, 1], by other means; None where there is none."""
    x, w, d = x.numpy(), w.numpy(), len(x)
    if norm == "Linf":
        eye, ones = np.eye(d), np.ones((d, 1))
        bounds = [(-v, 1 - v) for v in x] + [(0, None)]
        problem = {
            "c": np.r_[np.zeros(d), 1], "A_ub": np.block([[eye, -ones], [-eye, -ones]]), "b_ub": np.zeros(2 * d),
            "A_eq": np.r_[w, 0][None], "b_eq": [-value], "bounds": bounds,
        }  # fmt: skip
    elif norm == "L1":
        bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
        problem = {"c": np.ones(2 * d), "A_eq": np.r_[w, -w][None], "b_eq": [-value], "bounds": bounds}
    else:  # d = clip(s w) for the multiplier s at which the plane is met

        def move(s):
            return np.clip(s * w, -x, 1 - x)

        low, high = -1e6, 1e6
        if (w * move(low)).sum() > -value + 1e-9 or (w * move(high)).sum() < -value - 1e-9:
            return None
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if (w * move(middle)).sum() < -value else (low, middle)
        return float(np.linalg.norm(move(high)))
    found = linprog(**problem)
    return float(found.fun) if found.status == 0 else None


@st.composite
def planes(draw):
    d = draw(st.integers(1, 7))
    pixels = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1))
    weights = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.0]), st.floats(-3, 3).filter(lambda v: abs(v) > 1e-3))
    x = torch.tensor(draw(st.lists(pixels, min_size=d, max_size=d)), dtype=torch.float64)
    w = torch.tensor(draw(st.lists(weights, min_size=d, max_size=d)), dtype=torch.float64)
    return x, w, draw(st.floats(-3, 3))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(cases=st.lists(planes(), min_size=1, max_size=1))
def test_the_projection_is_the_nearest_point_of_plane_and_box(norm, cases):
    for x, w, value in cases:
        delta = onto_plane(x[None], w[None], torch.tensor([value], dtype=torch.float64), norm, BOX)
        assert (x + delta).min() >= -1e-9
        assert (x + delta).max() <= 1 + 1e-9
        least, missing = shortest_to_plane(x, w, value, norm), float(w @ delta[0] + value)
        reach = torch.where(-value * w > 0, 1 - x, x) @ w.abs()
        if least is None or reach < abs(value):
            assert abs(missing) == pytest.approx(abs(value) - float(reach), abs=1e-7)  # as near as the box lets it
        else:
            assert missing == pytest.approx(0, abs=1e-7)
            assert float(norm_of(delta, norm)) == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_treats_each_row_alone_in_thousands_of_dimensions(norm):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand((6, 3, 20, 20), generator=generator) * 3 - 1).clamp(0, 1)  # a third at each end of the box
    w = torch.randn(x.shape, generator=generator)
    value = torch.tensor([0.0, 1.0, -20.0, 100.0, -250.0, 1e4])  # from nothing to more than the box has
    together = onto_plane(x, w, value, norm, BOX)
    for i in range(6):
        alone = onto_plane(x[i : i + 1].double(), w[i : i + 1].double(), value[i : i + 1].double(), norm, BOX)
        assert torch.allclose(together[i], alone[0].float(), atol=2e-5)
    left = (w * together).flatten(1).sum(dim=1) + value
    assert torch.allclose(left[:5], torch.zeros(5), atol=1e-3)
    assert left[5] > 1000


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_that_no_point_can_near_moves_nothing(norm):
    x = torch.rand((2, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(onto_plane(x, torch.zeros_like(x), torch.ones(2), norm, BOX), torch.zeros_like(x))
    nan = onto_plane(x, torch.full_like(x, torch.nan), torch.ones(2), norm, BOX)  # and it comes to an end
    assert nan.shape == x.shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "classes"), [
    ((1, 1, 2), 2), ((1, 1, 2), 3), ((1, 5, 5), 2), pytest.param((3, 32, 32), 10, marks=pytest.mark.slow),
])  # fmt: skip
def test_it_finds_the_nearest_wrong_point_of_a_linear_model(norm, shape, classes, mode):
    model = linear_model(shape, classes)
    batch, threat = interior_batch(model, shape, 10), ThreatModel(norm, 0.1, box=None)
    x_adv = run(FAB(steps=10, **mode), threat, model, batch)
    assert wrong(model, x_adv, batch.y).all()
    distance, exact = threat.distance(x_adv, batch.x), exact_distance(model, batch, norm)
    assert (distance >= exact * (1 - 1e-4)).all()
    assert (distance <= exact * 1.01).all()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [MODES[0], pytest.param(MODES[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", NORMS)
def test_it_finds_the_nearest_wrong_point_in_the_box(norm, mode):
    shape, classes = (1, 3, 3), 3
    model = linear_model(shape, classes)
    x = (torch.rand((12, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 0.5).clamp(0, 1)
    with torch.no_grad():
        batch = Batch(x, model(x).argmax(dim=1), torch.arange(12))
    weight = model[1].weight.detach().double()
    exact = []
    for image, y in zip(x.double().flatten(1), batch.y, strict=True):
        to = [
            shortest_to_plane(image, w := weight[y] - weight[j], float(w @ image), norm)
            for j in range(classes)
            if j != y
        ]
        exact.append(min((d for d in to if d is not None), default=math.inf))
    exact = torch.tensor(exact, dtype=torch.float64)
    free = exact_distance(model, batch, norm)
    assert (exact > 1.01 * free).sum() >= 3  # the box matters
    threat = ThreatModel(norm, 0.1)
    x_adv = run(FAB(**mode), threat, model, batch)
    assert torch.equal(wrong(model, x_adv, batch.y), exact.isfinite())
    found = exact.isfinite()
    assert (threat.distance(x_adv, x)[found] <= 1.01 * exact[found]).all()


class Ball(nn.Module):
    """Two classes: the second one outside a ball of radius 0.4 around the middle of the box."""

    def forward(self, x):
        value = (x.flatten(1) - 0.5).square().sum(dim=1) - 0.16
        return torch.stack([-value, value], dim=1)


def test_it_finds_the_nearest_point_of_a_curved_boundary():
    direction = torch.randn((20, 1, 2, 5), generator=torch.Generator().manual_seed(0))
    x = 0.5 + 0.1 * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    batch, threat = Batch(x, torch.zeros(20, dtype=torch.int64), torch.arange(20)), ThreatModel("L2", 0.1)
    distance = threat.distance(run(FAB(), threat, Ball(), batch), x)
    assert ((distance > 0.3 * (1 - 1e-4)) & (distance < 0.3 * 1.015)).all()


class Slope(nn.Module):
    """Two classes, whose margin e^(-3 s) - 0.2 levels out along the diagonal, so that linearised steps fall short."""

    def forward(self, x):
        s = (x.flatten(1) - 0.5).sum(dim=1) / math.sqrt(x[0].numel())
        return torch.stack([(-3 * s).exp() - 0.2, torch.zeros_like(s)], dim=1)


def test_a_correctly_classified_point_does_not_count():
    x = torch.full((2, 1, 2, 3), 0.5)
    batch, threat = Batch(x, torch.zeros(2, dtype=torch.int64), torch.arange(2)), ThreatModel("L2", 0.1)
    assert torch.equal(run(FAB(steps=1), threat, Slope(), batch), x)
    distance = threat.distance(run(FAB(steps=30), threat, Slope(), batch), x)
    assert torch.allclose(distance, torch.full_like(distance, math.log(5) / 3), rtol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("alpha_max", "alpha"), [(0.1, 0.055 / 1.055), (0.02, 0.02)])
def test_the_steps_are_the_published_ones(norm, alpha_max, alpha):
    """On a linear model all points are on one line, at these multiples of the shortest way to the boundary."""
    model = linear_model((1, 5, 5), 2)
    batch, threat = interior_batch(model, (1, 5, 5), 10), ThreatModel(norm, 0.1, box=None)
    shown = []
    model.register_forward_hook(lambda *call: shown.append(call[1][0].detach().clone()))
    run(FAB(steps=2, eta=1.05, beta=0.9, alpha_max=alpha_max), threat, model, batch)
    clean, start, first, back, second = shown[:5]
    assert torch.equal(start, clean)
    multiples = (1.05, 0.9 * 1.05, (1 - alpha) * (0.945 + 1.05 * 0.055) + alpha * 1.05)
    for point, multiple in zip((first, back, second), multiples, strict=True):
        ratio = threat.distance(point, clean) / exact_distance(model, batch, norm)
        assert torch.allclose(ratio, torch.full_like(ratio, multiple), rtol=5e-4)


def test_the_final_search_takes_back_what_a_step_overshoots():
    model = linear_model((1, 5, 5), 2)
    batch, threat = interior_batch(model, (1, 5, 5), 10), ThreatModel("L2", 0.1, box=None)
    distance = threat.distance(run(FAB(steps=1, eta=1.5), threat, model, batch), batch.x)
    assert (distance < 1.001 * exact_distance(model, batch, "L2")).all()


def test_misclassified_images_are_returned():
    model = linear_model((1, 5, 5), 3)
    batch = interior_batch(model, (1, 5, 5), 9)
    y = batch.y.clone()
    y[::2] = (y[::2] + 1) % 3
    x_adv = run(FAB(steps=5), ThreatModel("L2", 0.1), model, Batch(batch.x, y, batch.index))
    assert torch.equal(x_adv[::2], batch.x[::2])
    assert (x_adv[1::2] != batch.x[1::2]).flatten(1).any(dim=1).all()


class Constant(nn.Module):
    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0]) + 0 * x.flatten(1)[:, :1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_images_are_returned_if_the_gradient_is_zero(norm, mode):
    x = torch.rand((3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    batch = Batch(x, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    attack = FAB(steps=3, restarts=2, **mode)
    assert torch.equal(run(attack, ThreatModel(norm, 0.1), Constant(), batch), x)


def test_passes():
    model = linear_model((1, 5, 5), 4)
    batch, threat = interior_batch(model, (1, 5, 5), 6), ThreatModel("L2", 0.1)
    search = 4 * 6
    for options, steps, backwards in [
        ({"steps": 7}, 7, 3 * 7),
        ({"steps": 7, "targeted": True}, 3 * 7, 3 * 7),
        ({"steps": 7, "targeted": True, "targets": 1}, 7, 7),
        ({"steps": 7, "restarts": 2}, 2 * 7, 2 * 3 * 7),
    ]:
        with count_passes(model, Passes()) as passes:
            run(FAB(**options), threat, model, batch)
        assert (passes.forwards, passes.backwards) == (6 + 6 * 2 * steps + search, 6 * backwards)


@pytest.mark.parametrize("eps", [0.05, "each its own"])
def test_with_until_eps_an_example_leaves_at_its_first_point_within_eps(eps):
    model = linear_model((1, 5, 5), 4)
    batch = interior_batch(model, (1, 5, 5), 30)
    exact = exact_distance(model, batch, "L2")
    if eps != 0.05:
        eps = torch.where(torch.arange(30) % 2 == 0, exact * 1.2, exact * 0.8)
    threat = ThreatModel("L2", eps)
    inside = exact < threat.eps_like(exact)
    assert 5 < inside.sum() < 25
    found, shown = {}, {}
    for until_eps in (False, True):
        with count_passes(model, Passes()) as passes:
            x_adv = run(FAB(steps=20, until_eps=until_eps), threat, model, batch)
        found[until_eps], shown[until_eps] = threat.contains(x_adv, batch.x) & wrong(model, x_adv, batch.y), passes
    assert torch.equal(found[True], inside)
    assert torch.equal(found[False], inside)
    assert shown[True].backwards < shown[False].backwards
    # one step, overshooting by a twentieth, is enough where eps leaves as much room
    roomy = int((exact * 1.06 < threat.eps_like(exact)).sum())
    assert shown[True].backwards <= 3 * (30 * 20 - roomy * 19)


def test_the_targets_are_the_likeliest_wrong_classes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    model[1].weight.data = torch.tensor([[3.0, 0.0], [2.5, 0.0], [5.0, 5.0]])
    model[1].bias.data = torch.tensor([0.0, 0.0, -2.0])
    batch = Batch(torch.tensor([[[[0.5, 0.1]]]]), torch.tensor([0]), torch.tensor([0]))  # logits 1.5, 1.25, 1.0
    threat = ThreatModel("L2", 0.1, box=None)
    for targets, nearest in ((1, 0.25 / 0.5), (2, 0.5 / math.hypot(2, 5))):
        x_adv = run(FAB(targeted=True, targets=targets), threat, model, batch)
        assert float(threat.distance(x_adv, batch.x)) == pytest.approx(nearest, rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_half_as_far_as_eps_or_the_nearest_point(norm):
    model = linear_model((1, 5, 5), 2)
    batch = interior_batch(model, (1, 5, 5), 20)
    exact = exact_distance(model, batch, norm)
    threat = ThreatModel(norm, float(exact.median()))
    shown = []
    model.register_forward_hook(lambda *call: shown.append(call[1][0].detach().clone()))
    for seed in (0, 1):
        run(FAB(steps=1, restarts=2), threat, model, batch, seed)
    clean, _, reached, start = shown[:4]
    distance = torch.minimum(threat.distance(reached, clean), torch.tensor(threat.eps))
    assert torch.allclose(threat.distance(start, clean), distance / 2, rtol=1e-3)
    assert not torch.equal(start, shown[len(shown) // 2 + 3])


class Wave(nn.Module):
    """Two classes with a wavy boundary, on which where a run begins matters."""

    def forward(self, x):
        value = (9 * x.flatten(1)).sin().sum(dim=1) + 1
        return torch.stack([value, -value], dim=1)


def test_more_restarts_are_never_farther():
    model, threat = Wave(), ThreatModel("L2", 0.5)
    x = torch.rand((30, 1, 1, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch = Batch(x, model(x).argmax(dim=1), torch.arange(30))
    distance = []
    for restarts in (1, 3):
        x_adv = run(FAB(steps=15, restarts=restarts), threat, model, batch)
        distance.append(torch.where(wrong(model, x_adv, batch.y), threat.distance(x_adv, x), torch.inf))
    # but for the final search, which may gain more on a point that was farther before it
    assert (distance[1] <= distance[0] * 1.02).all()
    assert (distance[1] < 0.9 * distance[0]).any()


@pytest.mark.parametrize("options", [{"alpha_max": 1.5}, {"eta": 0.9}, {"beta": 1.0}, {"targets": 0}])
def test_invalid_options_are_refused(options):
    with pytest.raises(UserError, match="alpha_max" if "targets" not in options else "targets"):
        FAB(**options)
