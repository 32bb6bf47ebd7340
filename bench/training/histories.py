"""Keeps the loss of each training example in each epoch, as the training computed it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core.contracts import Batch, Trainer
from bench.core.files import write_atomically

LOSSES = "losses.npz"
LOSS, WRONG = "history/loss", "history/wrong"  # banks (N, epochs): loss, NaN before its epoch; whether misclassified


@contextmanager
def keeping_losses(trainer: Trainer, batch: Batch, keep_losses: bool) -> Iterator[None]:
    """Keep the losses of the block, a step on the batch, in the trainer's bank; does nothing without `keep_losses`.

    The loss of an example is the cross entropy of its label in the last pass in train mode, that is on the images that
    update the weights: adversarial ones in adversarial training. If that pass has another number of images than the
    batch, the losses stay NaN.
    """
    if not keep_losses:
        yield
        return
    bank, model, epoch = trainer.bank, trainer.model, trainer.epoch
    if LOSS not in bank:
        bank[LOSS] = torch.full((trainer.examples, trainer.epochs), torch.nan, device=batch.y.device)
        bank[WRONG] = torch.zeros_like(bank[LOSS], dtype=torch.bool)
    last: list[Tensor] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if module.training and isinstance(output, Tensor) and output.requires_grad:
            last[:] = [output.detach()]

    handle = model.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
    if last and len(last[0]) == len(batch):
        logits = last[0].float()
        bank[LOSS][batch.index, epoch] = cross_entropy(logits, batch.y, reduction="none")
        bank[WRONG][batch.index, epoch] = logits.argmax(dim=1) != batch.y


def save_history(folder: Path, bank: dict[str, Tensor], rows: np.ndarray) -> None:
    """Write losses.npz: `loss` and `wrong` (N, epochs), and `index` (N,), the rows of the examples in the data set."""
    if LOSS in bank:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, loss=bank[LOSS].cpu().numpy(), wrong=bank[WRONG].cpu().numpy(), index=rows)
        write_atomically(folder / LOSSES, buffer.getvalue())
