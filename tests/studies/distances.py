"""Images of a linear model that are neither near its boundary nor far away from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.core.contracts import Batch
from bench.core.threat import DUAL_ORDER, Norm
from tests.linear import interior_batch


def at_some_distance(model: nn.Sequential, shape: tuple[int, ...], norm: Norm) -> tuple[Batch, Tensor]:
    """20 images that the model gets right, and how far they are from another class, (20,): 0.02 to 0.14."""
    with torch.no_grad():
        weight = model[1].weight
        weight -= weight.mean(dim=1, keepdim=True)  # else no grey image is near another class
        batch = interior_batch(model, shape, 400)
        logits = model(batch.x)
        slope = torch.linalg.vector_norm(weight[batch.y][:, None] - weight, ord=DUAL_ORDER[norm], dim=2)
        gap = logits.gather(1, batch.y[:, None]) - logits
        far = (gap / slope).nan_to_num(nan=torch.inf).amin(dim=1)
    rows = ((far > 0.02) & (far < 0.14)).nonzero().squeeze(1)[:20]
    assert len(rows) == 20
    return Batch(batch.x[rows], batch.y[rows], torch.arange(20)), far[rows]
