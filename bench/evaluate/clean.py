"""Predictions on clean images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core.contracts import frozen
from bench.core.errors import CheckError
from bench.core.records import Table
from bench.datasets.split import Split


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The class of each image, (B,) int64. CheckError where a logit is not a number."""
    logits = model(x)
    if not logits.isfinite().all():
        raise CheckError("the model returns logits that are not finite, so nothing can be measured; check its weights")
    return logits.argmax(dim=1)


def measure_clean(model: nn.Module, test: Split, batch_size: int) -> Table:
    """The table's first columns: index, label, prediction, clean."""
    with frozen(model):
        found = torch.cat([predict(model, batch.x) for batch in test.in_order(batch_size)])
    label: npt.NDArray[np.int64] = test.y.cpu().numpy()
    prediction: npt.NDArray[np.int64] = found.cpu().numpy()
    return {
        "index": np.arange(len(test), dtype=np.int64),
        "label": label,
        "prediction": prediction,
        "clean": label == prediction,
    }
