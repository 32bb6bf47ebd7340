"""Linear forms propagated backward through layers against the Jacobians that torch computes for the same layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.core.layers import Normalize, Residual
from certifiers.backward import BackwardBound, propagate_backward
from certifiers.layers import Reshape
from certifiers.linear_forms import DenseForms, margin_specification
from certifiers.network import Network
from certifiers.patch_forms import PatchForms, identity_forms

DOUBLE = torch.zeros((), dtype=torch.float64)


def randomized(module, seed):
    """In double precision, with weights and statistics that are all different from their initial ones."""
    draw = torch.Generator().manual_seed(seed)
    module.double().eval()
    for value in [*module.parameters(), *module.buffers()]:
        if value.is_floating_point():
            value.data = torch.rand(value.shape, generator=draw, dtype=torch.float64) + 0.1
    for parameter in module.parameters():
        parameter.data *= 2.0 * (torch.rand(parameter.shape, generator=draw) < 0.5) - 1
    return module


def jacobian(module, shape, seed=0):
    """Of the flattened output with respect to the flattened input, (T,N), and the output at zero, (T,)."""
    zero = torch.zeros((1, *shape), dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda x: module(x).flatten(), zero)
    return matrix.flatten(1), module(zero).flatten().detach()


def as_forms_of_image(module, shape, channels=None, units=None):
    """The units of a module's output (or some of its channels, or of its units) as linear forms of its input."""
    network = Network(nn.Sequential(module, nn.Flatten()), torch.zeros((1, *shape), dtype=torch.float64))
    k = network.output - isinstance(network.nodes[-1].layer, Reshape)
    forms = identity_forms(network.nodes[k].shape, channels or range(network.nodes[k].shape[0]), DOUBLE)
    start = BackwardBound({k: forms}) if units is None else BackwardBound({k: forms}).of_units(units)
    bound = propagate_backward(network, start, {})
    return bound.forms[0], bound.lower


def agrees(module, shape):
    """Every method of linear forms against the Jacobian: with PatchForms and with DenseForms."""
    with torch.no_grad():
        forms, constant = as_forms_of_image(module, shape)
    matrix, at_zero = jacobian(module, shape)
    draw = torch.Generator().manual_seed(1)
    values = torch.randn((3, *shape), generator=draw, dtype=torch.float64)
    flat = values.flatten(1)
    for each in (forms, forms.dense()):
        torch.testing.assert_close(each.dense().coefficients.flatten(2)[0], matrix)
        torch.testing.assert_close(each.dot(values), flat @ matrix.T)
        torch.testing.assert_close(each.negative_part().dot(values), flat @ matrix.clamp(max=0).T)
        torch.testing.assert_close(each.absolute().dot(values), flat @ matrix.abs().T)
        torch.testing.assert_close(each.negated().dot(values), -flat @ matrix.T)
        for order in (1.0, 2.0, torch.inf):
            norm = torch.linalg.vector_norm(matrix, ord=order, dim=1)
            torch.testing.assert_close(each.norm(order).expand(1, -1)[0], norm)
        scaled = each.scaled(values)
        torch.testing.assert_close(scaled.dot(values), flat.square() @ matrix.T)
        torch.testing.assert_close(scaled.norm(1.0), (matrix.abs() * flat.abs()[:, None]).sum(dim=2))
        torch.testing.assert_close(scaled.dense().coefficients.flatten(2), matrix * flat[:, None])
        twice = scaled.plus(each)
        torch.testing.assert_close(twice.dense().coefficients.flatten(2), matrix * (1 + flat[:, None]))
    if isinstance(constant, float):
        constant = torch.zeros(1, len(at_zero), dtype=torch.float64)
    torch.testing.assert_close(constant[0], at_zero)
    return forms


def agree_of_some_units(module, shape, forms):
    """Units that differ from example to example, selected in the module's output or (of its `forms`) in its input."""
    matrix, at_zero = jacobian(module, shape)
    draw = torch.Generator().manual_seed(2)
    units = torch.randint(len(matrix), (3, 4), generator=draw)
    values = torch.randn((3, *shape), generator=draw, dtype=torch.float64)
    flat, wanted = values.flatten(1), matrix[units]
    with torch.no_grad():
        backward, constant = as_forms_of_image(module, shape, units=units)
    for each in (backward, forms.of_units(units), backward.dense()):
        torch.testing.assert_close(each.dense().coefficients.flatten(2), wanted)
        torch.testing.assert_close(each.dot(values), (wanted @ flat[:, :, None])[:, :, 0])
        torch.testing.assert_close(each.dot(values[:1]), wanted @ flat[0])
        torch.testing.assert_close(each.norm(2.0), torch.linalg.vector_norm(wanted, dim=2))
        twice = each.scaled(values).plus(each)
        torch.testing.assert_close(twice.dense().coefficients.flatten(2), wanted * (1 + flat[:, None]))
        torch.testing.assert_close(each.of_channels(0, 1).dense().coefficients, wanted.unflatten(2, shape)[:, :, :1])
    if isinstance(constant, torch.Tensor):
        torch.testing.assert_close(constant.expand(3, 4), at_zero[units])


@st.composite
def geometries(draw, max_kernel=4):
    """kernel, stride, padding and dilation of a convolution, each for both axes."""
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    return pair(1, max_kernel), pair(1, 3), pair(0, 2), pair(1, 2)


def output_size(size, geometry):
    kernel, stride, padding, dilation = geometry
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    return [(size[a] + 2 * padding[a] - reach[a]) // stride[a] + 1 for a in (0, 1)]


@st.composite
def convolutions(draw):
    """One to three convolutions in a row, and the shape of their input."""
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(4)]
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    layers, left = [], list(size)
    for k in range(draw(st.integers(1, 3))):
        geometry = draw(geometries())
        if min(output_size(left, geometry)) < 1:
            break
        left = output_size(left, geometry)
        layers.append(nn.Conv2d(channels[k], channels[k + 1], *geometry, groups=groups, bias=draw(st.booleans())))
    layers = layers or [nn.Conv2d(channels[0], channels[1], 1, groups=groups)]
    return randomized(nn.Sequential(*layers), draw(st.integers(0, 99))), (channels[0], *size)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(convolutions())
def test_backward_through_convolutions(case):
    agree_of_some_units(*case, agrees(*case))


TRANSPOSED = [
    pytest.param(
        channels,
        groups,
        size,
        geometry,
        marks=[pytest.mark.slow] if channels in (3, 6) or size != (7, 10) else [],
    )
    for channels in (3, 4, 5, 6)
    for groups in (1, 2)
    for size in ((8, 8), (7, 10), (1, 1), (2, 9))
    for geometry in ((3, 2, 1), (4, 2, 1), (2, 3, 1), (3, 3, 2), (5, 1, 2))
    if min(output_size(size, [(value, value) for value in (*geometry, 1)])) > 0
]


@pytest.mark.parametrize(("channels", "groups", "size", "geometry"), TRANSPOSED)
def test_both_transposed_convolutions(channels, groups, size, geometry):
    """With few channels of input and with many; with pixels that no window reaches, behind padding and without."""
    conv = randomized(nn.Conv2d(channels * groups, 2 * groups, *geometry, groups=groups), 0)
    shape = (channels * groups, *size)
    agrees(conv, shape)
    network = Network(nn.Sequential(conv, nn.Flatten()), torch.zeros((1, *shape), dtype=torch.float64))
    matrix, _ = jacobian(conv, shape)
    eye = torch.eye(len(matrix), dtype=torch.float64).unflatten(1, network.nodes[1].shape)
    forms, _ = network.nodes[1].layer.backward(DenseForms(eye[None]), shape)
    torch.testing.assert_close(forms.dense().coefficients.flatten(2)[0], matrix)


def test_a_window_stays_a_window():
    """Otherwise the bounds of a convolution would cost far more."""
    net = randomized(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2)), 0)
    forms = agrees(net, (1, 12, 12))
    assert isinstance(forms, PatchForms)
    assert forms.size == (5, 5)


BRANCHES = {
    "the same": (nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)),
    "3x3 and 1x1": (nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)),
    "1x1 and 3x3": (nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3, padding=1)),
    "strided": (
        nn.Sequential(nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.Conv2d(2, 3, 3, padding=1)),
        nn.Conv2d(2, 3, 1, stride=2),
    ),
    "rectangular": (nn.Conv2d(2, 3, (1, 5), padding=(0, 2)), nn.Conv2d(2, 3, (5, 1), padding=(2, 0))),
    "same size, other place": (
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=2), nn.Conv2d(2, 3, 3)),
        nn.Conv2d(2, 3, 5, padding=2),
    ),
    "off centre": (nn.Conv2d(2, 3, (2, 4), padding=(1, 2)), nn.Conv2d(2, 3, (4, 2), padding=(2, 1))),
    "left over": (nn.Conv2d(2, 3, 2, stride=3), nn.Conv2d(2, 3, 3, stride=3)),
    "other strides": (nn.Conv2d(2, 3, 3, stride=2), nn.Conv2d(2, 3, 5, stride=1)),
    "other strides, large": (nn.Conv2d(2, 3, 1, stride=3), nn.Conv2d(2, 3, 2, stride=2, dilation=4)),
    "with the image": (nn.Conv2d(2, 2, 3, padding=1), nn.Identity()),
    "dense and window": (
        nn.Sequential(nn.Conv2d(2, 2, 9, padding=4), nn.Conv2d(2, 2, 9, padding=4)),
        nn.Conv2d(2, 2, 3, padding=1),
    ),
}
SIZES = {"other strides": (6, 6), "other strides, large": (9, 9), "left over": (9, 12)}


@pytest.mark.parametrize("name", BRANCHES)
def test_backward_through_sums(name):
    size = SIZES.get(name, (7, 10))
    module = randomized(Residual(*BRANCHES[name]), 3)
    agree_of_some_units(module, (2, *size), agrees(module, (2, *size)))


LAYERS = {
    "average pooling": (nn.AvgPool2d(2), (3, 6, 8)),
    "its windows overlap": (nn.AvgPool2d(3, stride=2, padding=1), (3, 6, 8)),
    "it leaves something over": (nn.AvgPool2d((2, 3)), (2, 7, 10)),
    "global pooling": (nn.AdaptiveAvgPool2d(1), (3, 5, 4)),
    "batch normalisation": (nn.BatchNorm2d(3), (3, 2, 4)),
    "without weights": (nn.BatchNorm2d(3, affine=False), (3, 2, 4)),
    "normalisation": (Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), (3, 2, 4)),
    "conv, batch norm, pool": (
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Conv2d(4, 2, 2)),
        (2, 7, 9),
    ),
    "depthwise": (nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6), nn.Conv2d(6, 2, 1)), (6, 8, 8)),
    "padded, then a bias": (
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=2), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=2)),
        (2, 5, 6),
    ),
    "linear": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 2 * 3, 5), nn.BatchNorm1d(5)), (2, 4, 5)),
    "no bias": (nn.Sequential(nn.Flatten(), nn.Linear(8, 5, bias=False)), (2, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_backward_through_layers(name):
    module, shape = LAYERS[name]
    agree_of_some_units(module, shape, agrees(randomized(module, 5), shape))


SINGLE = [name for name, (module, _) in LAYERS.items() if not isinstance(module, nn.Sequential)]


@pytest.mark.parametrize("name", SINGLE)
def test_intervals_through_layers(name):
    """The radius of an affine layer's output is |J| times its input's."""
    module, shape = LAYERS[name]
    randomized(module, 7)
    network = Network(nn.Sequential(module, nn.Flatten()), torch.zeros((1, *shape), dtype=torch.float64))
    draw = torch.Generator().manual_seed(2)
    center, radius = (torch.rand((2, *shape), generator=draw, dtype=torch.float64) for _ in range(2))
    matrix, at_zero = jacobian(module, shape)
    with torch.no_grad():
        middle, spread = network.nodes[1].layer.interval(center, radius)
    torch.testing.assert_close(middle.flatten(1), center.flatten(1) @ matrix.T + at_zero)
    torch.testing.assert_close(spread.flatten(1), radius.flatten(1) @ matrix.abs().T)


@pytest.mark.parametrize("channels", [range(1), range(1, 3), range(2, 3)])
def test_some_of_the_channels(channels):
    net = randomized(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 3, stride=2)), 0)
    with torch.no_grad():
        forms, constant = as_forms_of_image(net, (2, 6, 7), channels)
    matrix, at_zero = jacobian(net, (2, 6, 7))
    matrix, at_zero = matrix.unflatten(0, (3, -1)), at_zero.unflatten(0, (3, -1))
    expected = matrix[channels.start : channels.stop].flatten(0, 1)
    torch.testing.assert_close(forms.dense().coefficients.flatten(2)[0], expected)
    torch.testing.assert_close(constant[0], at_zero[channels.start : channels.stop].flatten())


def test_margins_are_differences_to_the_label():
    y = torch.tensor([0, 2, 3, 2])
    others, forms = margin_specification(y, 4, DOUBLE)
    assert others.tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 3]]
    logits = torch.randn((4, 4), dtype=torch.float64)
    torch.testing.assert_close(forms.dot(logits), logits.gather(1, y[:, None]) - logits.gather(1, others))
