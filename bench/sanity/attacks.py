"""The few-step attacks that the sanity checks make: one climb, and four ways to find its direction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.core.threat import Norm, ThreatModel

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B,K), labels (B,)) -> (B,), larger is worse for the model
Slope = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
# (model, points (B,C,H,W), labels (B,)) -> (logits (B,K), a direction of ascent (B,C,H,W))

SPARSE = 0.05  # of the coordinates move in a step under L1: its steepest step moves one, which is slow


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max over j != y of z_j, (B,): negative where the model is wrong."""
    own = functional.one_hot(y, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, float("-inf")).amax(dim=1)


def climb(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, slope: Slope, *, steps: int, alpha: float
) -> Tensor:
    """`steps` projected steps of size `alpha` up a slope from x (B,C,H,W); the point seen with the smallest margin."""
    project = threat.projector(x)
    point = worst = x
    lowest = torch.full((len(x),), float("inf"), device=x.device)
    for step in range(steps + 1):
        logits, uphill = slope(model, point, y)
        found = margin(logits, y)
        lower = found < lowest
        worst = torch.where(_column(lower, x), point, worst)
        lowest = torch.where(lower, found, lowest)
        if step < steps:
            point = project(point + alpha * direction(_inward(uphill, point, threat), threat.norm))
    return worst


def _inward(uphill: Tensor, point: Tensor, threat: ThreatModel) -> Tensor:
    """Without the coordinates at the end of the box that lead out of it, on which a sparse step would be wasted."""
    if threat.box is None:
        return uphill
    low, high = threat.box
    return torch.where(((point <= low) & (uphill < 0)) | ((point >= high) & (uphill > 0)), 0.0, uphill)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """A step of size one in `norm` along a gradient (B,C,H,W); zero where the gradient is."""
    flat = gradient.flatten(1)
    if norm == "Linf":
        return gradient.sign()
    if norm == "L2":
        return gradient / _column(torch.linalg.vector_norm(flat, dim=1).clamp(min=1e-30), gradient)
    kept = flat.abs().topk(max(1, round(SPARSE * flat.shape[1])), dim=1).indices
    sparse = torch.zeros_like(flat).scatter(1, kept, flat.sign().gather(1, kept))
    return (sparse / sparse.abs().sum(dim=1, keepdim=True).clamp(min=1)).reshape(gradient.shape)


def gradient_of(loss: Loss) -> Slope:
    """Up the gradient of a loss; zero where the model has none, or one that is not a number."""

    def slope(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = model(x)
            if not logits.requires_grad:
                return logits, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x, allow_unused=True, materialize_grads=True)
        return logits.detach(), gradient.nan_to_num(0, 0, 0)

    return slope


cross_entropy = gradient_of(lambda logits, y: functional.cross_entropy(logits, y, reduction="none"))
falling_margin = gradient_of(lambda logits, y: -margin(logits, y))


def rescaled(factor: float) -> Slope:
    """Up the cross entropy of the logits times `factor`: for logits so far apart that in float32 it has no slope."""
    return gradient_of(lambda logits, y: functional.cross_entropy(factor * logits, y, reduction="none"))


def averaged(slope: Slope, passes: int) -> Slope:
    """Expectation over transformation (Athalye et al., 2018): the mean of a slope, for a model that draws numbers."""

    def mean(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        drawn = [slope(model, x, y) for _ in range(passes)]
        return torch.stack([d[0] for d in drawn]).mean(dim=0), torch.stack([d[1] for d in drawn]).mean(dim=0)

    return mean


def smoothed(sigma: float, pairs: int, generator: torch.Generator) -> Slope:
    """The falling margin's gradient after Gaussian smoothing of the input, from forward passes alone.

    Antithetic finite differences (NES: Ilyas et al., 2018): for a model whose own gradient is zero or useless.
    """

    @torch.no_grad()
    def slope(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x)
        for _ in range(pairs):
            noise = sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            fall = margin(model(x - noise), y) - margin(model(x + noise), y)
            total += _column(fall, x) * noise
        return model(x), total

    return slope


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))
