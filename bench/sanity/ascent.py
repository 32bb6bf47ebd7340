"""The short attacks of the sanity checks: projected ascent along gradients that are computed in several ways."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.core.threat import TINY, ThreatModel

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B,K), labels (B,)) -> (B,), larger is worse for the model
Gradient = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
# (model, points (B,C,H,W), labels (B,)) -> (logits (B,K), direction of ascent (B,C,H,W))

L1_SHARE = 0.05  # of the coordinates change in a step under L1; the steepest step changes one, which is slow


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max over j != y of z_j, (B,): negative if the example is misclassified."""
    label = functional.one_hot(y, logits.shape[1]).bool()
    return logits[label] - logits.masked_fill(label, float("-inf")).amax(dim=1)


def projected_ascent(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, gradient: Gradient, *, steps: int, alpha: float
) -> Tensor:
    """`steps` projected steps of size `alpha` from x (B,C,H,W); returns the visited points of smallest margin."""
    project = threat.projector(x)
    point = worst = x
    lowest = torch.full((len(x),), float("inf"), device=x.device)
    for step in range(steps + 1):
        logits, uphill = gradient(model, point, y)
        margins = margin(logits, y)
        lower = margins < lowest
        worst = torch.where(_per_example(lower, x), point, worst)
        lowest = torch.where(lower, margins, lowest)
        if step < steps:
            point = project(point + alpha * unit_step(_into_box(uphill, point, threat), threat))
    return worst


def _into_box(uphill: Tensor, point: Tensor, threat: ThreatModel) -> Tensor:
    """Zero for coordinates at the border of the box that would leave it: a sparse step would be wasted on them."""
    if threat.box is None:
        return uphill
    low, high = threat.box
    return torch.where(((point <= low) & (uphill < 0)) | ((point >= high) & (uphill > 0)), 0.0, uphill)


def unit_step(gradient: Tensor, threat: ThreatModel) -> Tensor:
    """A step of norm one along a gradient (B,C,H,W); zero if the gradient is zero."""
    flat = gradient.flatten(1)
    if threat.norm == "Linf":
        return threat.steepest(gradient)
    if threat.norm == "L2":
        return gradient / _per_example(torch.linalg.vector_norm(flat, dim=1).clamp(min=TINY), gradient)
    largest = flat.abs().topk(max(1, round(L1_SHARE * flat.shape[1])), dim=1).indices
    sparse = torch.zeros_like(flat).scatter(1, largest, flat.sign().gather(1, largest))
    return (sparse / sparse.abs().sum(dim=1, keepdim=True).clamp(min=1)).reshape(gradient.shape)


def gradient_of(loss: Loss) -> Gradient:
    """The gradient of a loss; zero if the model has none, or if it is not finite."""

    def gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = model(x)
            if not logits.requires_grad:
                return logits, torch.zeros_like(x)
            (uphill,) = torch.autograd.grad(loss(logits, y).sum(), x, allow_unused=True, materialize_grads=True)
        return logits.detach(), uphill.nan_to_num(0, 0, 0)

    return gradient


cross_entropy_gradient = gradient_of(lambda logits, y: functional.cross_entropy(logits, y, reduction="none"))
margin_gradient = gradient_of(lambda logits, y: -margin(logits, y))


def rescaled(factor: float) -> Gradient:
    """The gradient of the cross entropy of `factor` times the logits, for saturated logits whose gradient vanishes."""
    return gradient_of(lambda logits, y: functional.cross_entropy(factor * logits, y, reduction="none"))


def averaged(gradient: Gradient, passes: int) -> Gradient:
    """Expectation over transformation (Athalye et al., 2018): the mean gradient of a stochastic model."""

    def mean(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits, uphill = zip(*(gradient(model, x, y) for _ in range(passes)), strict=True)
        return torch.stack(logits).mean(dim=0), torch.stack(uphill).mean(dim=0)

    return mean


def smoothed(sigma: float, pairs: int, generator: torch.Generator) -> Gradient:
    """The gradient of the negative margin after Gaussian smoothing of the input, from forward passes alone.

    Antithetic finite differences (NES: Ilyas et al., 2018): for a model whose own gradient is zero or useless.
    """

    @torch.no_grad()
    def gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x)
        for _ in range(pairs):
            noise = sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            difference = margin(model(x - noise), y) - margin(model(x + noise), y)
            total += _per_example(difference, x) * noise
        return model(x), total

    return gradient


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B,1,...), to broadcast against `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
