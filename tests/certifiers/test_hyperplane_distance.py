"""The distance to a hyperplane inside the box, against a linear program, a bisection and finite differences."""

import math

import pytest
import torch
from scipy.optimize import linprog, minimize

from bench.core.errors import UserError
from certifiers.hyperplane_distance import distance, signed_distance

BOX = (0.0, 1.0)


def planes(n=4, rows=5, seed=0, scale=1.0, shape=(1, 3, 3), zeros=True):
    """Random hyperplanes (a, b) and images with some pixels at the box's border and some coefficients of zero."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    a, b = draw(n, rows, *shape), scale * draw(n, rows)
    if zeros:
        a[:, :, 0, 0, 0] = 0
    return a, b, (0.5 + draw(n, *shape)).clamp(*BOX)


def by_linear_program(a, b, x):
    """The least t with |Delta_j| <= t, <a, Delta> <= -b and x + Delta in the box; inf where there is none."""
    m = len(a)
    rows = [[*a.tolist(), 0.0]]
    rows += [[*(sign * (k == j) for k in range(m)), -1.0] for j in range(m) for sign in (1.0, -1.0)]
    solution = linprog(
        [0.0] * m + [1.0], A_ub=rows, b_ub=[-b.item()] + [0.0] * (2 * m),
        bounds=[(-v, 1 - v) for v in x.tolist()] + [(0, None)],
    )  # fmt: skip
    return solution.fun if solution.status == 0 else math.inf


def by_projection(a, b, x):
    """The least L2 norm, by a general solver of quadratic programs; inf where the whole box is on one side."""
    lowest = torch.where(a > 0, -x, 1 - x)
    if a @ lowest + b > 0:
        return math.inf
    solution = minimize(
        lambda d: (d**2).sum(), lowest.numpy(), jac=lambda d: 2 * d, method="SLSQP", tol=1e-14,
        bounds=[(-v, 1 - v) for v in x.tolist()], options={"maxiter": 500},
        constraints={"type": "ineq", "fun": lambda d: -(d @ a.numpy()) - b.item(), "jac": lambda _: -a.numpy()},
    )  # fmt: skip
    return math.sqrt(solution.fun)


@pytest.mark.parametrize(("norm", "reference"), [("Linf", by_linear_program), ("L2", by_projection)])
def test_is_what_a_general_solver_finds(norm, reference):
    a, b, x = planes()
    computed = distance(a, b, x, norm, BOX)
    infinite = 0
    for n in range(len(b)):
        for row in range(b.shape[1]):
            wanted = reference(a[n, row].flatten(), b[n, row], x[n].flatten()) if b[n, row] > 0 else 0.0
            assert computed[n, row].item() == pytest.approx(wanted, abs=1e-6)
            infinite += wanted == math.inf
    assert (computed > 0).any()
    assert infinite < (b > 0).sum()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_without_a_box_it_is_the_value_over_the_dual_norm(norm):
    a, b, x = planes()
    dual = torch.linalg.vector_norm(a.flatten(2), ord=1 if norm == "Linf" else 2, dim=2)
    assert torch.allclose(distance(a, b, x, norm, None), b.clamp(min=0) / dual)
    assert torch.allclose(signed_distance(a, b, x, norm, None), b / dual)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_below_zero_it_is_minus_the_distance_to_the_other_side(norm):
    a, b, x = planes(scale=0.3)
    computed = signed_distance(a, b, x, norm, BOX)
    assert torch.equal(computed.clamp(min=0), distance(a, b, x, norm, BOX))
    assert torch.equal(computed.clamp(max=0), -distance(-a, -b, x, norm, BOX))
    assert (computed < 0).any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_infinite_where_the_whole_box_is_on_one_side(norm):
    a, _, x = planes()
    far = torch.full(a.shape[:2], 100.0, dtype=a.dtype)
    a.requires_grad_()
    for side in (1, -1):
        computed = signed_distance(a, side * far, x, norm, BOX)
        assert (computed == side * math.inf).all()
        (gradient,) = torch.autograd.grad(computed.sum(), a)
        assert (gradient == 0).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_constant_function_and_a_value_of_zero(norm):
    a, b, x = planes()
    a = (0 * a).requires_grad_()
    for value, wanted in ((1.0, math.inf), (-1.0, -math.inf), (0.0, 0.0)):
        computed = signed_distance(a, torch.full_like(b, value), x, norm, BOX)
        assert (computed == wanted).all()
        assert (torch.autograd.grad(computed.sum(), a)[0] == 0).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_point_that_far_away_is_on_the_hyperplane(norm):
    a, b, x = planes(n=20, shape=(3, 8, 8), scale=5)
    computed = distance(a, b, x, norm, BOX)
    a = a.flatten(2)
    near = (computed > 0) & computed.isfinite()
    assert near.sum() > 20
    assert (least(a, b, x.flatten(1), norm, computed)[near].abs() < 1e-9).all()
    assert (least(a, b, x.flatten(1), norm, 0.999 * computed)[near] > 0).all()


def least(a, b, x, norm, t):
    """The least <a, Delta> + b over the ball of radius t inside the box, by bisection of the step size."""
    room = torch.where(a > 0, x[:, None], 1 - x[:, None])
    if norm == "Linf":
        return b - (a.abs() * torch.minimum(t[:, :, None], room)).sum(dim=2)
    low, high = torch.zeros_like(b), torch.full_like(b, 1e3)
    for _ in range(200):
        middle = (low + high) / 2
        within = torch.minimum(middle[:, :, None] * a.abs(), room).norm(dim=2) <= t
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    return b - (a.abs() * torch.minimum(high[:, :, None] * a.abs(), room)).sum(dim=2)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("box", [BOX, pytest.param(None, marks=pytest.mark.slow)])
def test_gradient_is_that_of_finite_differences(norm, box):
    a, b, x = planes(scale=0.3, zeros=False)  # at zero |a| has a kink
    finite = signed_distance(a, b, x, norm, box).isfinite()
    assert finite.sum() > 10

    def computed(a, b):
        return signed_distance(a, b, x, norm, box)[finite]

    assert torch.autograd.gradcheck(computed, (a.requires_grad_(), b.requires_grad_()), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(("norm", "wanted"), [("Linf", 0.5), ("L2", 1.0)])
def test_a_corner_that_is_just_enough(norm, wanted):
    x = torch.full((1, 1, 1, 4), 0.5)
    a, b = torch.ones(1, 1, 1, 1, 4), torch.tensor([[2.0]])
    assert distance(a, b, x, norm, BOX).item() == wanted
    assert distance(a, b + 1e-6, x, norm, BOX).item() == math.inf


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_row_does_not_depend_on_its_neighbours(norm):
    a, b, x = planes(n=6)
    whole = distance(a, b, x, norm, BOX)
    alone = torch.cat([distance(a[k : k + 1], b[k : k + 1], x[k : k + 1], norm, BOX) for k in range(6)])
    assert torch.allclose(whole, alone, rtol=1e-12)


def test_refuses_l1():
    a, b, x = planes()
    with pytest.raises(UserError, match="L1"):
        distance(a, b, x, "L1", BOX)
