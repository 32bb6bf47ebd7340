"""Perturbations that are carried from one epoch to the next: one an example, on its padded canvas, in float16."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.core.contracts import Batch, Trainer


def start_bank(trainer: Trainer, std: float | None = None) -> None:
    """Draw all perturbations anew: Gaussian with `std`, or uniform in [-eps, eps] where it is None."""
    device = trainer.generator.device
    if std is None:
        draw = torch.rand(trainer.canvas, generator=trainer.generator, device=device).mul_(2).sub_(1).mul_(trainer.eps)
    else:
        draw = torch.randn(trainer.canvas, generator=trainer.generator, device=device).mul_(std)
    trainer.bank["delta"] = draw.half()


def carried_start(trainer: Trainer, batch: Batch) -> Tensor:
    """The batch's images with their perturbations on, (B,C,H,W), inside the threat model."""
    return trainer.threat.project(batch.x + batch.read(trainer.bank["delta"]), batch.x)


def carry(trainer: Trainer, batch: Batch, x_adv: Tensor) -> None:
    """Keep x_adv - x for the next epoch."""
    batch.write(trainer.bank["delta"], x_adv - batch.x)
