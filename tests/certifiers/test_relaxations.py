"""The linear relaxation of every activation, checked in numpy's long doubles over intervals of every kind."""

import numpy as np
import pytest
import torch

from certifiers import activations
from leaderboard.recheck.bounds import Relaxation

ACTIVATIONS = {
    "relu": (activations.RELU, lambda x: np.maximum(x, 0)),
    "leaky": (activations.leaky_relu(0.1), lambda x: np.maximum(x, x * np.longdouble(0.1))),
    "sigmoid": (activations.SIGMOID, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (activations.TANH, np.tanh),
}
RELAXATIONS = ("parallel", "adaptive", "tight")


def intervals(dtype):
    """Both ends of some thousand intervals: of all widths, far out, on one side, around zero, and of no width."""
    draw = torch.Generator().manual_seed(0)
    random = [torch.rand(400, generator=draw, dtype=torch.float64) for _ in range(4)]
    width = 10 ** (random[0] * 7.7 - 6)  # 1e-6 .. 50
    middle = 10 ** (random[1] * 4 - 2.5) * (2 * (random[2] < 0.5) - 1)  # 0.003 .. 30, either side
    low = torch.cat([middle - width / 2, -random[3] * width, torch.zeros(400), -width, middle, 5 * random[3] - 5])
    high = torch.cat([middle + width / 2, (1 - random[3]) * width, width, torch.zeros(400), middle, 5 * random[1]])
    ends = torch.tensor([-1e4, -88.0, -6.0, -5.0, -1e-3, -1e-30, 0.0, 1e-30, 1e-3, 4.9, 7.0, 90.0, 1e4]).double()
    pairs = torch.cartesian_prod(ends, ends)
    pairs = pairs[pairs[:, 0] <= pairs[:, 1]]
    return torch.cat([low, pairs[:, 0]]).to(dtype), torch.cat([high, pairs[:, 1]]).to(dtype)


def exact(tensor):
    return tensor.detach().double().numpy().astype(np.longdouble)


def clearances(lines, curve, low, high):
    """How far the upper line is above the curve and the lower one below it, at points all over each interval."""
    low, high = exact(low)[:, None], exact(high)[:, None]
    # evenly, and closer and closer to both ends and to zero, where lines and curve meet
    steps = np.concatenate([np.linspace(0, 1, 101), 10.0 ** -np.arange(2, 12), 1 - 10.0 ** -np.arange(2, 12)])
    around = np.concatenate([[0], 10.0 ** -np.arange(12), -(10.0 ** -np.arange(12))])
    x = np.concatenate([low + (high - low) * steps, np.clip(around[None], low, high)], axis=1)
    x = np.clip(x, low, high)
    shift = np.zeros_like(low) if lines.lower_bias is None else exact(lines.lower_bias)[:, None]
    above = exact(lines.upper_slope)[:, None] * x + exact(lines.upper_bias)[:, None] - curve(x)
    return above, curve(x) - exact(lines.lower_slope)[:, None] * x - shift


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("relaxation", [*RELAXATIONS, "crown"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_curve_is_between_its_lines(name, relaxation, dtype):
    """S-curves: without any tolerance. ReLU: the chord's end may be off by the rounding of its slope, 2 units in the
    last place of the interval's larger end."""
    activation, curve = ACTIVATIONS[name]
    low, high = intervals(dtype)
    above, below = clearances(activation.relax(low, high, relaxation), curve, low, high)
    unit = torch.finfo(dtype).eps
    allowed = 2 * unit * exact(torch.maximum(low.abs(), high.abs())) if activation.name == "relu" else 0 * exact(low)
    for side in (above, below):
        worst = (side.min(axis=1) + allowed).argmin()
        assert (side.min(axis=1) >= -allowed).all(), (low[worst].item(), high[worst].item(), side[worst].min() / unit)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_lines_are_no_further_away_than_they_need_be(name, relaxation):
    """Each line touches the curve, save where an S-curve is nearly flat."""
    activation, curve = ACTIVATIONS[name]
    low, high = intervals(torch.float64)
    kept = (high - low > 1e-2) & (high - low < 50)
    low, high = low[kept], high[kept]
    lines = activation.relax(low, high, relaxation)
    above, below = clearances(lines, curve, low, high)
    if activation.name == "relu":
        crossing = ((low <= 0) & (high >= 0)).numpy()
        assert above.min(axis=1).max() < 1e-12
        assert below[crossing].min(axis=1).max() < 1e-12
        assert below[(high < 0).numpy()].max() < 1e-12  # both lines are the piece itself
        assert below[(low > 0).numpy()].max() < 1e-12
    else:
        bent = lines.lower_slope.numpy() > 0
        assert bent.sum() > 500
        across = ACTIVATIONS[name][0].function(high) - ACTIVATIONS[name][0].function(low)
        assert (np.abs(exact(lines.gap) - exact(across)) < 1e-14)[~bent].all()
        if relaxation == "tight":  # parallel tangents may touch outside of the interval
            # the nearest points that were looked at are up to half a step from the point of touch
            near = ((high - low) / 100).numpy() ** 2 / 8 + 1e-14
            assert (above.min(axis=1) < near)[bent].all()
            assert (below.min(axis=1) < near)[bent].all()


@pytest.mark.parametrize("excess", [-3e-7, 0.0, 3e-7])
def test_rounding_does_not_decide_which_side_is_longer(excess):
    """A maximum of pixels with one value has such bounds; the proof checker follows the same rule."""
    low, high = np.array([-0.3]), np.array([0.3 * (1 + excess)])
    slope = activations.RELU.relax(torch.from_numpy(low), torch.from_numpy(high), "adaptive").lower_slope
    zero = np.zeros(1)
    checked = Relaxation(low, high, np.array([0.5]), zero, zero).through_origin("adaptive")
    assert slope.item() == checked.item() == 0.0


def test_relu_has_the_published_lines():
    """Eq. 3.4, and for the leaky one its chord; CROWN's lower slope is that of the longer side."""
    low, high = torch.tensor([-3.0, -1.0, -2.0, 0.5]), torch.tensor([1.0, 3.0, -1.0, 2.0])
    lines = activations.RELU.relax(low, high, "parallel")
    assert lines.parallel
    assert lines.lower_bias is None
    torch.testing.assert_close(lines.upper_slope, torch.tensor([0.25, 0.75, 0.0, 1.0]))
    torch.testing.assert_close(lines.upper_bias, torch.tensor([0.75, 0.75, 0.0, 0.0]))
    adaptive = activations.RELU.relax(low, high, "adaptive")
    assert adaptive.lower_slope.tolist() == [0.0, 1.0, 0.0, 1.0]
    torch.testing.assert_close(adaptive.upper_slope, lines.upper_slope)
    torch.testing.assert_close(adaptive.upper_bias, lines.upper_bias)
    leaky = activations.leaky_relu(0.2).relax(low, high, "parallel")
    torch.testing.assert_close(leaky.upper_slope, torch.tensor([0.4, 0.8, 0.2, 1.0]))
    torch.testing.assert_close(leaky.upper_bias, torch.tensor([0.6, 0.6, 0.0, 0.0]))
    torch.testing.assert_close(
        activations.leaky_relu(0.2).relax(low, high, "adaptive").lower_slope, torch.tensor([0.2, 1, 0.2, 1])
    )


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_s_curves_have_the_published_lines(name):
    """Eq. 3.5 and table 3.1: the slope of the chord, and both tangents of that slope; constants where it is flat."""
    activation, curve = ACTIVATIONS[name]
    low = torch.tensor([-1.0, -3.0, -2.0, 0.3, -8.0, 4.8, -0.9, -5.0, -3.0]).double()
    high = torch.tensor([2.0, 0.5, -0.5, 2.5, -5.9, 6.0, 4.0, -3.0, -2.0]).double()
    lines = activation.relax(low, high, "parallel")
    assert lines.parallel
    d = (curve(high.numpy()) - curve(low.numpy())) / (high - low).numpy()
    flat = d < 0.01
    assert flat.tolist() == [False] * 4 + [True] * 2 + [False, name == "tanh", False]
    np.testing.assert_allclose(lines.upper_slope, np.where(flat, 0, d), rtol=1e-12)
    if name == "sigmoid":
        t = -np.log((-(2 * d - 1) - np.sqrt(1 - 4 * d)) / (2 * d))
    else:
        t = np.log((-(d - 2) + 2 * np.sqrt(1 - d)) / d) / 2
    chord = curve(low.numpy()) - d * low.numpy()
    up = np.where((high <= 0).numpy(), chord, curve(t) - d * t)
    down = np.where((low >= 0).numpy(), chord, curve(-t) + d * t)
    np.testing.assert_allclose(lines.upper_bias, np.where(flat, curve(high.numpy()), up), atol=1e-12)
    np.testing.assert_allclose(lines.lower_bias, np.where(flat, curve(low.numpy()), down), atol=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_the_lines_of_crown(name):
    """Zhang et al. (2018), table 2: tangents through the other end across zero, else the chord and a tangent."""
    activation, curve = ACTIVATIONS[name]
    low = torch.tensor([-1.0, -5.0, -2.0, 0.5, -3.0, 0.7]).double()
    high = torch.tensor([5.0, 1.0, 2.0, 3.0, -0.5, 0.7005]).double()
    lines = activation.relax(low, high, "crown")
    above, below = clearances(lines, curve, low, high)
    assert above.min(axis=1).max() < 1e-4  # between the points that were looked at
    assert below.min(axis=1).max() < 1e-4
    at_low = (lines.upper_slope * low + lines.upper_bias).numpy() - curve(low.numpy())
    at_high = curve(high.numpy()) - (lines.lower_slope * high + lines.lower_bias).numpy()
    assert (np.abs(at_low[[0, 1, 2, 4]]) < 1e-11).all()  # through the left end
    assert (np.abs(at_high[[0, 1, 2, 3]]) < 1e-11).all()  # and the right one
    chord = (curve(high.numpy()) - curve(low.numpy())) / (high - low).numpy()
    # a tangent whose point is beyond the interval is the chord
    np.testing.assert_allclose(lines.upper_slope.numpy()[[1, 4]], chord[[1, 4]], atol=1e-12)
    np.testing.assert_allclose(lines.lower_slope.numpy()[[0, 3]], chord[[0, 3]], atol=1e-12)
    middle = (low + high).numpy() / 2
    at_middle = curve(middle) - (lines.lower_slope.numpy() * middle + lines.lower_bias.numpy())
    assert abs(at_middle[4]) < 1e-12  # the tangent at the middle
    # across zero both are tangents through the other end, where parallel ones are further away
    assert chord[2] + 1e-3 < lines.upper_slope[2] == pytest.approx(lines.lower_slope[2].item())
    parallel = activation.relax(low, high, "adaptive")
    assert (parallel.upper_slope * low + parallel.upper_bias)[2] > curve(low.numpy())[2] + 1e-2
    assert lines.upper_slope[5] == lines.lower_slope[5] == 0  # too narrow for a quotient


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_tight_is_the_chord_wherever_that_is_a_bound(name):
    activation, _ = ACTIVATIONS[name]
    low, high = torch.tensor([-4.0, -0.5, -2.0]).double(), torch.tensor([0.5, 4.0, 2.0]).double()
    wide, tight = activation.relax(low, high, "adaptive"), activation.relax(low, high, "tight")
    at_low, at_high = activation.function(low), activation.function(high)
    assert (tight.gap <= wide.gap + 1e-15).all()
    np.testing.assert_allclose((tight.upper_slope * high + tight.upper_bias)[0], at_high[0], atol=1e-14)
    np.testing.assert_allclose((tight.lower_slope * low + tight.lower_bias)[1], at_low[1], atol=1e-14)
    torch.testing.assert_close(tight.upper_bias[1:], wide.upper_bias[1:])
    torch.testing.assert_close(tight.lower_bias[[0, 2]], wide.lower_bias[[0, 2]])
    assert (tight.gap < wide.gap - 1e-2).tolist() == [True, True, False]


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_gradient_is_a_number(name, relaxation):
    low, high = intervals(torch.float32)
    low, high = low.requires_grad_(), high.requires_grad_()
    lines = ACTIVATIONS[name][0].relax(low, high, relaxation)
    total = lines.lower_slope.sum() + lines.upper_slope.sum() + lines.gap.sum()
    if lines.lower_bias is not None:
        total = total + lines.lower_bias.sum()
    for gradient in torch.autograd.grad(total, [low, high]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_interval_of_an_activation_is_its_image(name):
    activation, curve = ACTIVATIONS[name]
    low, high = intervals(torch.float64)
    kept = high - low < 1e3
    low, high = low[kept], high[kept]
    center, radius = activation.interval((low + high) / 2, (high - low) / 2)
    scale = 1e-14 * (1 + torch.maximum(low.abs(), high.abs()).numpy())
    assert (np.abs(exact(center - radius) - curve(exact(low))) < scale).all()
    assert (np.abs(exact(center + radius) - curve(exact(high))) < scale).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_stated_slopes_are_the_least_and_the_greatest(name):
    activation, _ = ACTIVATIONS[name]
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation.function(x).sum(), x)
    assert slope.min().item() == pytest.approx(activation.slope[0], abs=1e-6)
    assert slope.max().item() == pytest.approx(activation.slope[1], abs=1e-6)
