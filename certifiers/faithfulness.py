"""Checks on many images that a network's layers compute the same as the model.

The recording of a forward pass (certifiers/recording.py) shows exactly what a model computes for the recorded images.
A model may still do something else for other images, other numbers of images, or when gradients are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.core.contracts import mode_of
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.layers import Affine
from certifiers.network import Network, in_float64

AT_ONCE = 256  # images in a forward pass
DIFFERENCE = 1e-4  # of the largest logit at all images: generous bound of rounding errors
CORNERS = 2  # random ones, for each image


def check_computes(network: Network, model: nn.Module, x: Tensor, threat: ThreatModel) -> None:
    """Raise UserError if the layers do not compute the model's logits around images x (B,C,H,W).

    The model is recorded again with another number of images and with gradients, and must have the same layers. The
    logits are compared at the images, at corners of the region around each, after a gradient step, and at images of
    extreme values.
    """
    generator = torch.Generator(device=x.device).manual_seed(0)
    near = [*_corners(x, threat, generator), _gradient_step(model, x, threat)]
    points = torch.cat([x, *near, _extreme_images(x, threat, generator)])
    name = type(model).__name__
    with torch.enable_grad():
        few = points[torch.linspace(0, len(points) - 1, 3, device=x.device).long()].clone().requires_grad_()
        again = Network(model, few)
    if not same_layers(network, again, DIFFERENCE / 100):
        raise UserError(
            f"{name} cannot be bounded: its layers depend on the image, the number of images or the gradient"
        )
    check_logits(network, model, points)


def float64_twin(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of a model in float64. UserError if it has other layers than the model for images x (B,C,H,W)."""
    try:
        twin = in_float64(model)
    except Exception as error:  # whatever copying a model raises
        text = f"it cannot be copied to float64: {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise UserError(f"{type(model).__name__} cannot be bounded: {text}") from error
    if not same_layers(Network(model, x[:1]), Network(twin, x[:1].double()), DIFFERENCE):
        raise UserError(f"{type(model).__name__} cannot be bounded: its copy in float64 has other layers")
    return twin


@torch.no_grad()
def check_logits(network: Network, model: nn.Module, points: Tensor) -> None:
    """UserError if the logits of a model differ from its layers' at some of the images (N,C,H,W)."""
    parts = points.split(AT_ONCE)
    with mode_of(model, training=False):
        logits = torch.cat([model(images.clone()) for images in parts])
        computed = torch.cat([network.logits(images) for images in parts])
    if logits.shape != computed.shape or not ((logits - computed).abs() <= DIFFERENCE * computed.abs().amax()).all():
        raise UserError(
            f"{type(model).__name__} cannot be bounded: for some images its layers compute something else. "
            "Its Python code must not depend on the image or on earlier images"
        )


def same_layers(a: Network, b: Network, difference: float) -> bool:
    """Whether two networks have the same layers; weights may differ by `difference` times the largest one."""
    pairs = zip(a.nodes, b.nodes, strict=False)
    return len(a.nodes) == len(b.nodes) and all(
        type(one.layer) is type(other.layer)
        and (one.inputs, one.shape) == (other.inputs, other.shape)
        and _same(_numbers(one.layer), _numbers(other.layer), difference)
        for one, other in pairs
    )


def _numbers(layer: object) -> list[Tensor]:
    """All tensors and numbers that determine a layer's output."""
    values = [] if layer is None else list(vars(layer).values())
    if isinstance(layer, Affine):
        values = [layer.weight, layer.bias, *vars(getattr(layer, "kernel", layer)).values()]
    numbers = [value for value in values if isinstance(value, (bool, int, float, tuple, Tensor))]
    return [torch.as_tensor(value, dtype=torch.float64).detach().cpu() for value in numbers]


def _same(a: list[Tensor], b: list[Tensor], difference: float) -> bool:
    """Whether the values (including infinite ones) are equal up to `difference` times the largest one."""
    return len(a) == len(b) and all(
        x.shape == y.shape
        and (not x.numel() or bool(((x == y) | ((x - y).abs() <= difference * x.abs().amax())).all()))
        for x, y in zip(a, b, strict=True)
    )


def _corners(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> list[Tensor]:
    """Points at distance eps: under Linf both ends of every pixel's interval, and random corners."""
    eps = threat.eps_like(x).to(x.dtype)
    random = [torch.rand(x.shape, generator=generator, device=x.device) < 0.5 for _ in range(CORNERS)]
    signs = [torch.ones_like(x), -torch.ones_like(x), *(2.0 * each.to(x) - 1 for each in random)]
    return [threat.project(x + eps * threat.steepest(sign), x).to(x.dtype) for sign in signs]


def _gradient_step(model: nn.Module, x: Tensor, threat: ThreatModel) -> Tensor:
    """The points where one step of length eps lowers the largest logit most, to first order."""
    with mode_of(model, training=False), torch.enable_grad():
        start = x.clone().requires_grad_()
        logits = model(start.clone())
        if not logits.requires_grad:
            return x
        best = logits.topk(min(2, logits.shape[1]), dim=1).values
        (gradient,) = torch.autograd.grad((best[:, 0] - best[:, -1]).sum(), start, allow_unused=True)
    if gradient is None:
        return x
    step = threat.eps_like(x).to(x.dtype) * threat.steepest(gradient.nan_to_num())
    return threat.project(x - step, x).to(x.dtype)


def _extreme_images(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Black, white, grey, random black-and-white and noise images."""
    low, high = threat.box or (0.0, 1.0)
    one = x[:1]
    noise = torch.rand((8, *x.shape[1:]), generator=generator, device=x.device).to(x)
    levels = [torch.full_like(one, low + share * (high - low)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return torch.cat([*levels, low + (high - low) * torch.cat([noise[:4], noise[4:].round()])])
