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

    The loss of an example is the cross entropy of its label in the last pass in train mode on other images than the
    batch's own, that is on the adversarial images in adversarial training; without such a pass, in the last pass on the
    batch's own. If that pass has a different number of images from the batch, the losses stay NaN. Additional data
    (index -1) have none.
    """
    if not keep_losses:
        yield
        return
    bank, model, epoch = trainer.bank, trainer.model, trainer.epoch
    if LOSS not in bank:
        bank[LOSS] = torch.full((trainer.examples, trainer.epochs), torch.nan, device=batch.y.device)
        bank[WRONG] = torch.zeros_like(bank[LOSS], dtype=torch.bool)
    last: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module.training and isinstance(output, Tensor) and output.requires_grad:
            last["clean" if inputs and inputs[0] is batch.x else "perturbed"] = output.detach()

    handle = model.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
    logits = last.get("perturbed", last.get("clean"))
    if logits is not None and len(logits) == len(batch):
        own = batch.index >= 0
        logits, y, index = logits[own].float(), batch.y[own], batch.index[own]
        bank[LOSS][index, epoch] = cross_entropy(logits, y, reduction="none")
        bank[WRONG][index, epoch] = logits.argmax(dim=1) != y


def save_history(folder: Path, bank: dict[str, Tensor], rows: np.ndarray) -> None:
    """Write losses.npz: `loss` and `wrong` (N, epochs), and `index` (N,), the rows of the examples in the data set."""
    if LOSS in bank:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, loss=bank[LOSS].cpu().numpy(), wrong=bank[WRONG].cpu().numpy(), index=rows)
        write_atomically(folder / LOSSES, buffer.getvalue())
