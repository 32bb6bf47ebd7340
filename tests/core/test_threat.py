import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core.errors import UserError
from bench.core.example_table import Threat
from bench.core.threat import NORMS, ThreatModel

quick = settings(deadline=None, derandomize=True, max_examples=60)
every_norm = pytest.mark.parametrize("norm", NORMS)
BOXES = ((0.0, 1.0), None)
ULP = 2.0**-24  # half the spacing of float32 below 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def cases(draw, norms=NORMS, boxes=BOXES):
    """A threat, images, and points near and far from them; some pixels at the ends of the box."""
    generator = seeded(draw(st.integers(0, 10_000)))
    n = draw(st.integers(1, 4))
    shape = (n, *draw(st.sampled_from([(1, 1, 1), (1, 2, 3), (3, 4, 4)])))
    eps = draw(st.sampled_from([1e-4, 8 / 255, 0.3, 2.0]) | st.floats(1e-4, 3))
    if draw(st.booleans()):
        eps = eps * (0.1 + torch.rand(n, generator=generator))
    box = draw(st.sampled_from(boxes))
    x = (torch.rand(shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    spread = draw(st.sampled_from([1e-4, 0.05, 1.0, 100.0]))
    x_adv = x + spread * torch.randn(shape, generator=generator)
    return ThreatModel(draw(st.sampled_from(norms)), eps, box), x, x_adv


@quick
@given(cases())
def test_projection_lands_inside(case):
    threat, x, x_adv = case
    assert threat.contains(threat.project(x_adv, x), x).all()


@quick
@given(cases(), st.integers(0, 10))
def test_random_start_is_inside_and_a_function_of_the_seed(case, seed):
    threat, x, _ = case
    start = threat.random_start(x, seeded(seed))
    assert start.dtype == x.dtype
    assert threat.contains(start, x).all()
    assert torch.equal(start, threat.random_start(x, seeded(seed)))


@quick
@given(cases(norms=["Linf"]))
def test_linf_never_exceeds_eps_at_all(case):
    threat, x, x_adv = case
    budget = threat.eps_like(x).flatten()
    for point in (threat.project(x_adv, x), threat.random_start(x, seeded())):
        assert (threat.distance(point, x) <= budget).all()


@quick
@given(cases(norms=["Linf"]))
def test_linf_projection_is_the_clamp(case):
    threat, x, x_adv = case
    eps, centre = threat.eps_like(x), x.double()
    low, high = centre - eps, centre + eps
    if threat.box is not None:
        low, high = low.clamp(min=0), high.clamp(max=1)
    expected = x_adv.double().clamp(low, high)
    torch.testing.assert_close(threat.project(x_adv, x).double(), expected, rtol=4 * ULP, atol=4 * ULP)


@quick
@given(cases(norms=["L2"], boxes=(None,)))
def test_l2_projection_without_a_box_scales(case):
    threat, x, x_adv = case
    delta = x_adv.double() - x.double()
    length = delta.flatten(1).norm(dim=1)
    factor = (threat.eps_like(x).flatten() / length).clamp(max=1)
    expected = x.double() + factor.reshape(-1, 1, 1, 1) * delta
    torch.testing.assert_close(threat.project(x_adv, x).double(), expected, rtol=4 * ULP, atol=4 * ULP)


@quick
@given(cases(norms=["L2"], boxes=BOXES[:1]))
def test_l2_projection_in_a_box_is_the_clamped_one_without(case):
    threat, x, x_adv = case
    free = ThreatModel("L2", threat.eps, None)
    assert torch.equal(threat.project(x_adv, x), free.project(x_adv, x).clamp(0, 1))


def steepest(gradient, threat, x):
    """max <gradient, d> over the allowed perturbations d of one flat image: the budget goes to the largest first."""
    budget = float(threat.eps)
    low, high = threat.box or (-math.inf, math.inf)
    room = torch.where(gradient > 0, high - x, x - low)
    total = 0.0
    for i in gradient.abs().argsort(descending=True).tolist():
        spent = min(budget, float(room[i]))
        total += float(gradient[i].abs()) * spent
        budget -= spent
    return total


@quick
@given(cases(norms=["L1"]))
def test_l1_projection_is_the_nearest_allowed_point(case):
    # p is the projection of z onto a convex set exactly if <z - p, q - p> <= 0 for each q of the set, and the largest
    # such product bounds the squared distance of p from the projection
    threat, x, x_adv = case
    projected = threat.project(x_adv, x)
    for i in range(len(x)):
        centre, found, far = (t[i].flatten().double() for t in (x, projected, x_adv))
        gradient = far - found
        one = ThreatModel("L1", float(threat.eps_like(x).flatten()[min(i, threat.eps_like(x).numel() - 1)]), threat.box)
        gap = steepest(gradient, one, centre) - float(gradient @ (found - centre))
        assert gap <= 4 * ULP * (float(gradient.abs().sum()) + 1)


def test_l1_projection_in_closed_form():
    x = torch.tensor([[0.5, 0.5, 0.5], [0.9, 0.5, 0.5]])
    x_adv = torch.tensor([[1.0, 0.3, 0.5], [1.4, 0.9, 0.4]])
    # row 1: the soft threshold 0.2 leaves 0.3 of 0.5; row 2: 0.1 of room, so the other pays what is left, 0.2
    expected = torch.tensor([[0.8, 0.5, 0.5], [1.0, 0.7, 0.5]])
    torch.testing.assert_close(ThreatModel("L1", 0.3).project(x_adv, x), expected, rtol=0, atol=1e-6)


@quick
@given(cases())
def test_a_point_inside_is_its_own_projection(case):
    threat, x, _ = case
    inside = ThreatModel(threat.norm, 0.9 * threat.eps, threat.box).random_start(x, seeded(1))
    assert torch.equal(threat.project(inside, x), inside)


@quick
@given(cases())
def test_projector_is_project_for_one_image(case):
    threat, x, x_adv = case
    difference = (threat.projector(x)(x_adv) - threat.project(x_adv, x)).abs().flatten(1).amax(dim=1)
    assert (difference <= 2e-7 + 1e-6 * (x_adv - x).abs().flatten(1).amax(dim=1)).all()


def perturbations(norm, n=4000, shape=(1, 1, 3), eps=0.5):
    return ThreatModel(norm, eps, None).random_delta(torch.zeros(n, *shape), seeded()).flatten(1) / eps


@pytest.mark.parametrize(("norm", "order"), [("L2", 2), ("L1", 1)])
def test_random_delta_is_uniform_in_radius(norm, order):
    delta = perturbations(norm)
    volume = torch.linalg.vector_norm(delta, ord=order, dim=1) ** 3  # uniform in [0, 1] in three dimensions
    assert volume.mean().item() == pytest.approx(1 / 2, abs=0.02)
    assert volume.square().mean().item() == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(("norm", "order", "power", "moment"), [("L2", 2, 4, 3 / 15), ("L1", 1, 2, 2 / 12)])
def test_random_delta_is_uniform_in_direction(norm, order, power, moment):
    delta = perturbations(norm)
    direction = delta / torch.linalg.vector_norm(delta, ord=order, dim=1, keepdim=True)
    for coordinate in direction.T:
        assert coordinate.mean().item() == pytest.approx(0, abs=0.04)
        assert (coordinate**power).mean().item() == pytest.approx(moment, abs=0.02)


def test_random_delta_linf_is_uniform_in_the_cube():
    delta = perturbations("Linf")
    assert delta.mean().item() == pytest.approx(0, abs=0.02)
    assert delta.square().mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert (delta[:, 0] * delta[:, 1]).mean().item() == pytest.approx(0, abs=0.02)


@every_norm
def test_random_delta_has_each_examples_own_budget(norm):
    eps = torch.tensor([1e-4, 0.1, 2.0])
    x = torch.zeros(3, 1, 2, 2)
    threat = ThreatModel(norm, eps, None)
    largest = torch.stack([threat.distance(threat.random_delta(x, seeded(s)), x) for s in range(50)]).amax(dim=0)
    assert (largest <= eps.double() * (1 + 1e-12)).all()
    assert (largest >= 0.8 * eps).all()


@pytest.mark.parametrize(("norm", "expected"), [("Linf", [4.0, 0.5]), ("L2", [5.0, 0.5]), ("L1", [7.0, 0.5])])
def test_distance_in_closed_form(norm, expected):
    x_adv = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.5]]]])
    distance = ThreatModel(norm, 1.0, None).distance(x_adv, torch.zeros_like(x_adv))
    assert distance.dtype == torch.float64
    assert distance.tolist() == expected


@every_norm
def test_contains_has_the_tolerance_of_a_millionth_of_eps(norm):
    x = torch.zeros(4, 1, 1, 1, dtype=torch.float64)
    x_adv = 0.5 * torch.tensor([1, 1 + 0.9e-6, 1 + 1.1e-6, 2], dtype=torch.float64).reshape(x.shape)
    assert ThreatModel(norm, 0.5).contains(x_adv, x).tolist() == [True, True, False, False]


@every_norm
@pytest.mark.parametrize("bad", [-1e-7, 1 + 1e-6, math.nan, math.inf])
def test_contains_refuses_what_leaves_the_box_or_is_not_finite(norm, bad):
    x = torch.full((2, 1, 1, 2), max(0.0, min(1.0, bad)) if math.isfinite(bad) else 0.5)
    x_adv = x.clone()
    x_adv[1, 0, 0, 1] = bad
    assert ThreatModel(norm, 1.5).contains(x_adv, x).tolist() == [True, False]


def test_contains_is_per_example():
    x = torch.full((2, 1, 1, 1), 0.5)
    threat = ThreatModel("Linf", torch.tensor([0.1, 0.3]))
    assert threat.contains(x + 0.2, x).tolist() == [False, True]


def test_of_takes_the_rows_budgets():
    rows = torch.tensor([2, 0])
    threat = ThreatModel("L2", torch.tensor([0.1, 0.2, 0.3]), None).of(rows)
    assert torch.equal(threat.eps, torch.tensor([0.3, 0.1]))
    assert (threat.norm, threat.box) == ("L2", None)
    assert ThreatModel("L2", 0.5).of(rows) == ThreatModel("L2", 0.5)


@pytest.mark.parametrize("norm", ["linf", "L3", ""])
def test_unknown_norm_is_a_user_error(norm):
    with pytest.raises(UserError, match=r"\A.*Linf, L2, L1.*\Z"):
        ThreatModel(norm, 0.1)


@pytest.mark.parametrize("eps", [0, 0.0, -0.1, math.nan, math.inf])
def test_bad_eps_is_a_user_error(eps):
    with pytest.raises(UserError, match=r"\A.*eps .*positive.*\Z"):
        ThreatModel("Linf", eps)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_no_images_have_no_perturbations(norm):
    x, threat = torch.zeros((0, 1, 3, 3)), ThreatModel(norm, 0.1)
    assert threat.random_start(x, seeded(0)).shape == x.shape
    assert threat.project(x, x).shape == x.shape
    assert threat.contains(x, x).shape == (0,)


@every_norm
def test_steepest_has_norm_one_and_the_dual_norm_as_its_product(norm):
    threat, gradient = ThreatModel(norm, 0.3), torch.randn(4, 2, 3, 3, generator=seeded(), dtype=torch.float64)
    direction = threat.steepest(gradient)
    product = (direction * gradient).flatten(1).sum(dim=1)
    assert direction.shape == gradient.shape
    assert threat.dual_norm(gradient).shape == (4,)
    torch.testing.assert_close(threat.distance(direction, torch.zeros_like(direction)), torch.ones(4).double())
    torch.testing.assert_close(product, threat.dual_norm(gradient))


@pytest.mark.parametrize(
    ("norm", "direction", "dual"),
    [("Linf", [1.0, -1.0, 0.0], 7.0), ("L2", [0.6, -0.8, 0.0], 5.0), ("L1", [0.0, -1.0, 0.0], 4.0)],
)
def test_steepest_in_closed_form(norm, direction, dual):
    threat, gradient = ThreatModel(norm, 1.0), torch.tensor([3.0, -4.0, 0.0]).reshape(1, 1, 1, 3)
    torch.testing.assert_close(threat.steepest(gradient).flatten(), torch.tensor(direction))
    assert threat.dual_norm(gradient).tolist() == [dual]


@every_norm
def test_steepest_of_nothing_is_nothing_and_of_a_tiny_gradient_is_not(norm):
    threat, gradient = ThreatModel(norm, 1.0), torch.zeros(2, 1, 2, 2)
    gradient[1, 0, 0, 0] = -1e-25  # its square underflows in float32
    direction = threat.steepest(gradient)
    assert not direction[0].any()
    assert direction[1].flatten().tolist() == [-1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("norm", "largest"), [("Linf", 1.0), ("L2", math.sqrt(12)), ("L1", 12.0)])
def test_largest_eps_is_the_distance_between_opposite_corners(norm, largest):
    shape = (3, 2, 2)
    threat = ThreatModel(norm, largest)
    assert threat.largest_eps(shape) == pytest.approx(largest)
    assert threat.distance(torch.ones(1, *shape), torch.zeros(1, *shape)).item() == pytest.approx(largest)
    assert ThreatModel(norm, largest, (-1.0, 1.0)).largest_eps(shape) == pytest.approx(2 * largest)
    ThreatModel(norm, 0.999 * largest).check_eps(shape)
    with pytest.raises(UserError, match=rf"\A[^\n]*eps 13[^\n]*{norm}[^\n]*\Z"):
        ThreatModel(norm, 13.0).check_eps(shape)


def test_an_eps_in_grey_levels_is_answered_with_the_fraction():
    with pytest.raises(UserError, match="write 8/255"):
        ThreatModel("Linf", 8.0).check_eps((1, 8, 8))


def test_the_threat_model_of_a_record():
    assert ThreatModel.from_record(Threat("L2", 0.5)) == ThreatModel("L2", 0.5, (0.0, 1.0))
    with pytest.raises(UserError, match=r"\Anorm 'L3' is not one of Linf, L2, L1\Z"):
        ThreatModel.from_record(Threat("L3", 0.5))


def test_clamp():
    x = torch.tensor([[-0.5, 0.25, 1.5]])
    assert ThreatModel("Linf", 0.1).clamp(x).tolist() == [[0.0, 0.25, 1.0]]
    assert ThreatModel("Linf", 0.1, None).clamp(x) is x
