"""Soft labels that follow the model's own predictions from epoch to epoch: one (K,) for each example."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.core.contracts import Batch, Trainer


def move_targets(trainer: Trainer, batch: Batch, logits: Tensor, momentum: float) -> Tensor:
    """t <- momentum * t + (1 - momentum) * softmax(logits), stored for each example: (B,K), without a gradient.

    The first t of an example is its label, one-hot.
    """
    p = logits.detach().softmax(dim=1)
    if "targets" not in trainer.bank:  # all zero: an example that had no step yet
        trainer.bank["targets"] = torch.zeros(trainer.examples, p.shape[1], dtype=p.dtype, device=p.device)
    before = batch.read(trainer.bank["targets"])
    before = torch.where(before.any(dim=1, keepdim=True), before, one_hot(batch.y, p.shape[1]).to(before.dtype))
    moved = momentum * before + (1 - momentum) * p
    batch.write(trainer.bank["targets"], moved)
    return moved
