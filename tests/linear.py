"""Linear models, on which the optimal perturbation and the exact margin are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.core.contracts import Batch
from bench.core.threat import DUAL_ORDER, Norm, ThreatModel


def linear_model(shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        nn.init.normal_(model[1].weight)
        nn.init.zeros_(model[1].bias)
    return model


def interior_batch(model: nn.Module, shape: tuple[int, ...], n: int, seed: int = 0) -> Batch:
    """Images between 0.3 and 0.7, at least 0.3 from the ends of the box, labelled by the model."""
    x = 0.3 + 0.4 * torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return Batch(x, model(x).argmax(dim=1), torch.arange(n))


def exact_margin(model: nn.Sequential, batch: Batch, threat: ThreatModel) -> Tensor:
    """The margin z_y - max over j != y of z_j, minimized over the ball, (B,); the box must not matter."""
    gaps, dual_norms = _gaps(model, batch, threat.norm)
    return (gaps - threat.eps * dual_norms).min(dim=1).values


def exact_distance(model: nn.Sequential, batch: Batch, norm: Norm) -> Tensor:
    """The distance from each image to the nearest misclassified point, (B,); the box must not matter."""
    gaps, dual_norms = _gaps(model, batch, norm)
    return (gaps / dual_norms).min(dim=1).values


def _gaps(model: nn.Sequential, batch: Batch, norm: Norm) -> tuple[Tensor, Tensor]:
    """z_y - z_j, infinite at j = y, and the dual norms of their gradients (one at j = y), both (B,K) float64."""
    weight = model[1].weight.detach().double()
    logits = batch.x.double().flatten(1) @ weight.T
    own = torch.nn.functional.one_hot(batch.y, len(weight)).bool()
    gaps = (logits.gather(1, batch.y[:, None]) - logits).masked_fill(own, math.inf)
    dual_norms = torch.linalg.vector_norm(weight[batch.y][:, None] - weight[None], ord=DUAL_ORDER[norm], dim=2)
    return gaps, dual_norms.masked_fill(own, 1.0)


def near_the_boundary(model: nn.Sequential, shape: tuple[int, ...]) -> Batch:
    """The 20 of 400 images with the smallest margins, of a model changed to have equal logits at grey images."""
    with torch.no_grad():
        model[1].weight -= model[1].weight.mean(dim=1, keepdim=True)
    batch = interior_batch(model, shape, 400)
    rows = exact_margin(model, batch, ThreatModel("Linf", 1e-9)).argsort()[:20]
    return Batch(batch.x[rows], batch.y[rows], torch.arange(20))


def eps_that_breaks_half(model: nn.Sequential, batch: Batch, norm: Norm) -> float:
    """An eps that breaks half of the examples, too small for the box to matter."""
    low, high = 1e-6, 0.3
    for _ in range(40):
        middle = (low + high) / 2
        broken = (exact_margin(model, batch, ThreatModel(norm, middle)) < 0).float().mean()
        low, high = (middle, high) if broken < 0.5 else (low, middle)
    assert high < 0.3
    return high
