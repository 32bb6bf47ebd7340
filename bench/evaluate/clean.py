"""Predictions on clean images."""

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.contracts import frozen
from bench.core.errors import CheckError
from bench.core.example_table import Table
from bench.datasets.split import Split


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The class of each image, (B,) int64. CheckError if a logit is not finite."""
    return _logits(model, x).argmax(dim=1)


def predict_with_margin(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each image, and z_y - max over j != y of z_j, both (B,), from one pass."""
    logits = _logits(model, x)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return logits.argmax(dim=1), (logits.gather(1, y[:, None]).squeeze(1) - others).float()


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = model(x)
    if not logits.isfinite().all():
        raise CheckError("the model returns logits that are not finite; check its weights")
    return logits


def measure_clean(model: nn.Module, test: Split, batch_size: int) -> Table:
    """Return the table's first columns: index, label, prediction, clean."""
    with frozen(model):
        predictions = torch.cat([predict(model, batch.x) for batch in test.in_order(batch_size)])
    index, label, prediction = np.arange(len(test), dtype=np.int64), test.y.cpu().numpy(), predictions.cpu().numpy()
    return {"index": index, "label": label, "prediction": prediction, "clean": label == prediction}
