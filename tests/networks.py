"""Random small networks of every supported layer, and points at which their bounds are checked."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.core.layers import Normalize, Residual
from bench.core.threat import NORMS, ORDER, ThreatModel

ACTIVATIONS = {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
CURVED = tuple(module for module in (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh))


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, int, int], int]:
    """A network in double precision and eval mode, the shape of its images, and its number of classes."""
    shape = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    classes = draw(st.integers(2, 4))
    layers: list[nn.Module] = []
    if draw(st.booleans()):
        layers.append(Normalize([0.4, 0.6][: shape[0]], [0.5, 0.3][: shape[0]]))
    channels, *size = shape
    for _ in range(draw(st.integers(0, 3))):
        block, channels, size = draw(blocks(channels, size))
        layers += block
    layers.append(nn.Flatten())
    features = channels * math.prod(size)
    for _ in range(draw(st.integers(0, 2))):
        width = draw(st.integers(1, 8))
        layers.append(nn.Linear(features, width, bias=draw(st.booleans())))
        layers += [nn.BatchNorm1d(width)] if draw(st.booleans()) else []
        layers += [activation(draw), nn.Dropout(0.5)]
        if draw(st.booleans()):
            layers.append(Residual(nn.Sequential(nn.Linear(width, width), activation(draw))))
        features = width
    layers.append(nn.Linear(features, classes))
    model = nn.Sequential(*layers).double().eval()
    return drawn_weights(model, draw(st.integers(0, 10**6)), draw(st.sampled_from([0.5, 1.0, 3.0]))), shape, classes


@st.composite
def blocks(draw: st.DrawFn, channels: int, size: list[int]) -> tuple[list[nn.Module], int, list[int]]:
    """A few layers on images of `channels` and `size`, and the channels and the size of their output."""
    kind = draw(st.sampled_from(["conv", "conv", "residual", "pool", "global", "activation"]))
    if kind == "pool" and min(size) > 1:
        return [nn.AvgPool2d(2)], channels, [each // 2 for each in size]
    if kind == "global":
        return [nn.AdaptiveAvgPool2d(1)], channels, [1, 1]
    if kind == "activation":
        return [activation(draw)], channels, size
    out = draw(st.integers(1, 6))
    if kind == "residual":
        stride = draw(st.integers(1, 2))
        branch = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            activation(draw),
            nn.Conv2d(out, out, 3, padding=1),
        )
        same = stride == 1 and out == channels
        shortcut = None if same else nn.Conv2d(channels, out, 1, stride=stride)
        return [Residual(branch, shortcut), activation(draw)], out, [(each - 1) // stride + 1 for each in size]
    kernel, stride, padding = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    dilation = draw(st.integers(1, 2))
    after = [(each + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for each in size]
    if min(after) < 1 or max(after) > 9:
        return [nn.Conv2d(channels, out, 1), activation(draw)], out, size
    groups = channels if draw(st.booleans()) and out % channels == 0 else 1
    conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups)
    return [conv, *([nn.BatchNorm2d(out)] if draw(st.booleans()) else []), activation(draw)], out, after


def activation(draw: st.DrawFn) -> nn.Module:
    return ACTIVATIONS[draw(st.sampled_from(["relu", "relu", "leaky", "sigmoid", "tanh"]))]()


def drawn_weights(model: nn.Sequential, seed: int, gain: float) -> nn.Sequential:
    """Normal weights, scaled so that activations keep their size at gain 1; random batch norm statistics."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            fan_in = math.prod(module.weight.shape[1:])
            module.weight.data = gain * torch.randn(module.weight.shape, generator=draw).double() / math.sqrt(fan_in)
            if module.bias is not None:
                module.bias.data = 0.3 * torch.randn(module.bias.shape, generator=draw).double()
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean):
                value.copy_(torch.randn(value.shape, generator=draw))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=draw) + 0.2)
    return model.requires_grad_(False)


@st.composite
def threats(draw: st.DrawFn, examples: int) -> ThreatModel:
    """Threat models of every norm, with and without a box, with one eps for all examples or one for each."""
    norm = draw(st.sampled_from(NORMS))
    sizes = st.sampled_from([1e-3, 0.05, 0.3, 1.0])
    eps = (
        draw(sizes)
        if draw(st.booleans())
        else torch.tensor(draw(st.lists(sizes, min_size=examples, max_size=examples)))
    )
    return ThreatModel(norm, eps, (0.0, 1.0) if draw(st.booleans()) else None)


def images(shape: tuple[int, int, int], n: int, seed: int) -> Tensor:
    """Images in double precision; some pixels are 0 or 1."""
    x = 1.4 * torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.2
    return x.clamp(0, 1)


def sampled(x: Tensor, threat: ThreatModel, n: int, draw: torch.Generator) -> Tensor:
    """Points of the threat model (n,B,C,H,W): the images, points from inside, from the sphere, and corners."""
    many = x.repeat(n, 1, 1, 1)
    wide = _repeated(threat, n)
    inside = wide.random_start(many, draw)
    share = 10 ** (-3 * torch.rand((len(many), 1, 1, 1), generator=draw, dtype=x.dtype))  # of the pixels that move
    moved = torch.rand(many.shape, generator=draw, dtype=x.dtype) < share
    sign = 2.0 * (torch.rand(many.shape, generator=draw, dtype=x.dtype) < 0.5) - 1
    one = torch.rand(many.flatten(1).shape, generator=draw, dtype=x.dtype).argmax(dim=1, keepdim=True)
    moved |= torch.zeros_like(many.flatten(1)).scatter(1, one, 1.0).view_as(many) > 0
    direction = torch.where(moved, sign, 0)
    corners = wide.project(many + direction * _length(direction, threat, wide, many), many)
    at_corner = torch.rand((len(many), 1, 1, 1), generator=draw) < 0.7
    sample = torch.where(at_corner, corners, inside)
    sample[: len(x)] = x
    return sample.view(n, *x.shape)


def _length(direction: Tensor, threat: ThreatModel, wide: ThreatModel, many: Tensor) -> Tensor:
    """The length at which a direction reaches the sphere."""
    return wide.eps_like(many) / torch.linalg.vector_norm(direction.flatten(1), ord=ORDER[threat.norm], dim=1).view(
        -1, 1, 1, 1
    )


def _repeated(threat: ThreatModel, n: int) -> ThreatModel:
    eps = threat.eps.repeat(n) if isinstance(threat.eps, Tensor) else threat.eps
    return ThreatModel(threat.norm, eps, threat.box)


def attacked(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, draw: torch.Generator) -> Tensor:
    """The points of steepest descent on every z_y - z_j with decreasing steps, (K*steps,B,C,H,W)."""
    classes = model(x[:1]).shape[1]
    many, wide = x.repeat(classes, 1, 1, 1), _repeated(threat, classes)
    rows = torch.arange(len(many))
    label, target = y.repeat(classes), torch.arange(classes).repeat_interleave(len(x))
    x_adv = wide.random_start(many, draw)
    trajectory = []
    for step in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        logits = model(x_adv)
        (gradient,) = torch.autograd.grad((logits[rows, label] - logits[rows, target]).sum(), x_adv)
        step_size = 2 * wide.eps_like(many) / (step + 1)
        x_adv = wide.project(x_adv.detach() - step_size * wide.steepest(gradient), many)
        trajectory.append(x_adv)
    return torch.stack(trajectory).view(-1, *x.shape)


def points(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, n: int, seed: int = 0) -> Tensor:
    """n sampled points and the attacked ones, (N,B,C,H,W), all within the threat model."""
    draw = torch.Generator().manual_seed(seed)
    tried = torch.cat([sampled(x, threat, n, draw), attacked(model, x, y, threat, 8, draw)])
    allowed = _repeated(threat, len(tried)).contains(tried.flatten(0, 1), x.repeat(len(tried), 1, 1, 1))
    assert allowed.all()
    return tried


def margins_at(model: nn.Module, tried: Tensor, y: Tensor) -> Tensor:
    """z_y - z_j at points (N,B,C,H,W): (N,B,K), inf at the label."""
    with torch.no_grad():
        logits = torch.cat([model(each) for each in tried.flatten(0, 1).split(4096)]).unflatten(0, tried.shape[:2])
    label = y.expand(len(tried), -1)[:, :, None]
    return (logits.gather(2, label) - logits).scatter(2, label, torch.inf)


class Concatenated(nn.Module):
    """The outputs of two branches, one after the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Arithmetic(nn.Module):
    """(x - mu) / sigma and more, with numbers and constants, as a function."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mu", torch.linspace(-0.3, 0.7, channels).view(1, -1, 1, 1))
        signs = (-1.0) ** torch.arange(channels)
        self.sigma = nn.Parameter((signs * torch.linspace(0.4, 0.8, channels)).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mu) / self.sigma
        return 0.3 - (2 * x - 1 + x / 3) * 0.7


class Mean(nn.Module):
    """The mean over the height, the width or both."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes, keepdim=True)


class Extremes(nn.Module):
    """max(x, a x + b) and min(x, c x): maxima and minima of two."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, 0.3 - 0.5 * x), 2 * x)


CURVES = {
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "elu": lambda: nn.ELU(0.6),
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(1.7),
    "softplus": lambda: nn.Softplus(2.0),
    "hardtanh": lambda: nn.Hardtanh(-0.4, 0.7),
    "relu6": nn.ReLU6,
    "hardsigmoid": nn.Hardsigmoid,
    "extremes": Extremes,
    "falling leaky": lambda: nn.LeakyReLU(-0.3),
}
LAYERS = (*CURVES, "prelu", "max-pool", "mean", "concatenation", "same", "transposed", "arithmetic")


@st.composite
def networks_with(draw: st.DrawFn, layer: str) -> tuple[nn.Sequential, tuple[int, int, int], int]:
    """As `networks`, with one of LAYERS between two other layers."""
    shape = draw(st.integers(1, 2)), draw(st.integers(3, 6)), draw(st.integers(3, 6))
    classes, channels, size = draw(st.integers(2, 4)), draw(st.integers(1, 4)), list(shape[1:])
    first: list[nn.Module] = []
    if draw(st.booleans()):
        first = [nn.Conv2d(shape[0], channels, 3, padding=1), *([activation(draw)] if draw(st.booleans()) else [])]
    else:
        channels = shape[0]
    middle, channels, size = draw(layer_of(layer, channels, size))
    last: list[nn.Module] = [activation(draw)] if draw(st.booleans()) else []
    if draw(st.booleans()) and min(size) > 1:
        last += [nn.Conv2d(channels, 3, 2), middle[0] if layer in CURVES else activation(draw)]
        channels, size = 3, [each - 1 for each in size]
    model = nn.Sequential(*first, *middle, *last, nn.Flatten(), nn.Linear(channels * math.prod(size), classes))
    model = model.double().eval()
    return drawn_weights(model, draw(st.integers(0, 10**6)), draw(st.sampled_from([0.5, 1.0, 3.0]))), shape, classes


@st.composite
def layer_of(draw: st.DrawFn, layer: str, channels: int, size: list[int]) -> tuple[list[nn.Module], int, list[int]]:
    """One of LAYERS, and the channels and the size of its output."""
    if layer in CURVES:
        return [CURVES[layer]()], channels, size
    if layer == "prelu":
        prelu = nn.PReLU(channels)
        nn.init.uniform_(prelu.weight, -1.0, 2.0)
        prelu.weight.data = torch.tensor(draw(st.lists(st.floats(-1, 2), min_size=channels, max_size=channels)))
        return [prelu], channels, size
    if layer == "max-pool":
        kernel, stride, border = draw(st.sampled_from([(2, 2, 0), (2, 1, 0), (3, 2, 1), (3, 1, 1), (3, 2, 0)]))
        if draw(st.integers(0, 4)) == 0:
            return [nn.AdaptiveMaxPool2d(1)], channels, [1, 1]
        return [nn.MaxPool2d(kernel, stride, border)], channels, [(s + 2 * border - kernel) // stride + 1 for s in size]
    if layer == "mean":
        axes = draw(st.sampled_from([(2,), (3,), (2, 3), (-1, -2)]))
        return [Mean(*axes)], channels, [1 if k in {axis % 4 for axis in axes} else size[k - 2] for k in (2, 3)]
    if layer == "concatenation":
        other = nn.Sequential(nn.Conv2d(channels, 2, 3, padding=1), activation(draw))
        branches = [other, nn.Identity()] if draw(st.booleans()) else [nn.Identity(), other, activation(draw)]
        return [Concatenated(*branches)], 2 + channels * (len(branches) - 1), size
    if layer == "same":
        kernel, dilation = draw(st.sampled_from([(3, 1), (3, 2), ((1, 5), 1), (2, 2), (4, 2)]))
        return [nn.Conv2d(channels, 2, kernel, padding="same", dilation=dilation)], 2, size
    if layer == "transposed":
        kernel, stride, border, extra, dilation = draw(
            st.sampled_from([(2, 2, 0, 0, 1), (3, 2, 1, 1, 1), (3, 1, 1, 0, 1), (2, 1, 0, 0, 2), (3, 3, 0, 2, 1)])
        )
        groups = channels if draw(st.booleans()) else 1
        conv = nn.ConvTranspose2d(channels, 2 * groups, kernel, stride, border, extra, groups, dilation=dilation)
        after = [(each - 1) * stride - 2 * border + dilation * (kernel - 1) + extra + 1 for each in size]
        return [conv], 2 * groups, after
    return [Arithmetic(channels)], channels, size
