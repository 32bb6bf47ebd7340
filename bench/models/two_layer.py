"""Networks of the theory of adversarial training; only some of their layers are trained."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.errors import UserError
from bench.core.layers import FixedLinear
from bench.models.building_blocks import NamedLayers, Shape, assemble


def as_logits(top: Tensor) -> Tensor:
    """Convert a top layer a (1, m) to rows (2, m) whose logits differ by f = a^T h; other top layers stay unchanged.

    So the cross entropy of class 1 is log(1 + e^-f), that of class 0 log(1 + e^f), and the predicted class is f's sign.
    """
    return torch.cat([-top / 2, top / 2]) if len(top) == 1 else top


@registry.model("two-layer")
def two_layer(
    shape: Shape,
    classes: int,
    *,
    width: int = 1000,
    activation: Literal["relu", "leaky-relu", "softplus"] = "relu",
    slope: float = 0.1,
    std: float = 1.0,
    top: float | None = None,
    mirrored: bool = False,
    bias: bool = False,
) -> nn.Sequential:
    """f(x) = sum_r a_r act(w_r^T x), a_r = +-top at random and fixed, w_r from N(0, std^2) and trained.

    reflected-loss.txt, section 2 (`leaky-relu`); lazy-training.txt, definition 2.1 (the defaults);
    first-order-adversaries.txt, section 2 (`softplus`, std = 1/sqrt(d)); convergence-overparametrized.txt, Eq. 4
    (`softplus`, `mirrored`). Two classes have the logits -f/2 and f/2; with more classes, each has its own top layer.

    width: hidden units. activation: of the hidden units. slope: of leaky-relu below zero. std: of the first layer's
    weights. top: absolute value of each top weight; none: 1/sqrt(width). mirrored: the second half of the units starts
    as a copy of the first with the opposite top weights, so f = 0 at the start. bias: of the first layer, from N(0, 1)
    and trained.
    """
    if width < 1 or (mirrored and width % 2) or std < 0 or (top is not None and top <= 0):
        raise UserError("'two-layer' takes width >= 1 (even, if mirrored), std >= 0 and top > 0")
    stem = nn.Linear(math.prod(shape), width, bias=bias)
    signs = 2.0 * torch.randint(2, (1 if classes == 2 else classes, width)) - 1
    half = width // 2
    with torch.no_grad():
        for parameter, deviation in zip(stem.parameters(), (std, 1.0), strict=False):
            parameter.normal_(0.0, deviation)
            if mirrored:
                parameter[half:] = parameter[:half]
    if mirrored:
        signs[:, half:] = -signs[:, :half]
    act = {"relu": nn.ReLU(), "leaky-relu": nn.LeakyReLU(slope), "softplus": nn.Softplus()}[activation]
    output = FixedLinear(as_logits(signs * (width**-0.5 if top is None else top)))
    return assemble([("flatten", nn.Flatten()), ("stem", stem), ("act1", act), ("output", output)])


@registry.model("deep-ntk")
def deep_ntk(shape: Shape, classes: int, *, width: int = 512, depth: int = 2) -> nn.Sequential:
    """f(x) = a^T h_H, h_k = relu(W_k h_(k-1)), h_0 = A x: A and a fixed, the square matrices W_1 .. W_H trained.

    convergence-overparametrized.txt, Eq. 1: entries of A and W_k from N(0, 2/width), of a from N(0, 1). Two classes
    have the logits -f/2 and f/2.

    width: units of each layer. depth: the number H of trained layers.
    """
    if width < 1 or depth < 1:
        raise UserError("'deep-ntk' takes width >= 1 and depth >= 1")
    std = math.sqrt(2 / width)
    layers: NamedLayers = [
        ("flatten", nn.Flatten()),
        ("stem", FixedLinear(std * torch.randn(width, math.prod(shape)))),
    ]
    for number in range(1, depth + 1):
        linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(linear.weight, std=std)
        layers += [(f"fc{number}", linear), (f"act{number}", nn.ReLU())]
    top = torch.randn(1 if classes == 2 else classes, width)
    return assemble([*layers, ("output", FixedLinear(as_logits(top)))])
