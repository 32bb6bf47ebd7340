"""Perturbations that are kept from one epoch to the next: one per example, on its padded canvas, in float16.

They may be stored at a lower resolution (thesis, Algorithm 5.2, for ImageNet), as means over squares of pixels.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Trainer
from bench.core.rules import not_negative


@dataclass(frozen=True, kw_only=True)
class BankConfig(TrainingConfig):
    """The settings of a defense whose perturbations start as Gaussian noise and are drawn again every few epochs."""

    start_std: float = 0.001  # standard deviation of the noise from which the attacks start
    reset_every: int = 10  # epochs after which the perturbations are drawn again, at least 2: each is carried over once
    store_size: int = 0  # side of a stored perturbation, as 32 for ImageNet; 0 for that of the padded image
    omitted_at_default: ClassVar[tuple[str, ...]] = ("store_size",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            start_std=not_negative(self.start_std),
            reset_every=(self.reset_every >= 2, "at least 2, so that perturbations are carried to another epoch"),
            store_size=not_negative(self.store_size),
        )


def start_bank(trainer: Trainer, std: float | None = None, size: int = 0) -> None:
    """Draw all perturbations: Gaussian with `std`, or uniform in [-eps, eps] if it is None; `size`: see store_size."""
    distribution = torch.rand if std is None else torch.randn
    shape = (*trainer.canvas[:2], size, size) if size else trainer.canvas
    draw = distribution(shape, generator=trainer.generator, device=trainer.generator.device)
    delta = draw.mul_(2).sub_(1).mul_(trainer.eps) if std is None else draw.mul_(std)
    trainer.bank["delta"] = delta.half()


def reset_bank(trainer: Trainer, config: BankConfig) -> None:
    """At the end of an epoch: draw all perturbations again if `reset_every` epochs have passed."""
    if (trainer.epoch + 1) % config.reset_every == 0:
        start_bank(trainer, config.start_std, config.store_size)


def carried_start(trainer: Trainer, batch: Batch) -> Tensor:
    """The batch's images plus their perturbations, (B,C,H,W), projected onto the threat model."""
    bank = trainer.bank["delta"]
    delta = batch.read(bank) if bank.shape == trainer.canvas else on_its_own(batch).read(enlarged(trainer, batch))
    return trainer.threat.project(batch.x + delta, batch.x)


def carry(trainer: Trainer, batch: Batch, x_adv: Tensor) -> None:
    """Store x_adv - x for the next epoch."""
    bank = trainer.bank["delta"]
    if bank.shape == trainer.canvas:
        batch.write(bank, x_adv - batch.x)
    else:
        canvas = enlarged(trainer, batch)
        on_its_own(batch).write(canvas, x_adv - batch.x)
        bank[batch.index] = adaptive_avg_pool2d(canvas, (bank.shape[2], bank.shape[3])).to(bank.dtype)


def enlarged(trainer: Trainer, batch: Batch) -> Tensor:
    """The batch's stored perturbations, upsampled (nearest) to the padded canvas, (B,C,H+2p,W+2p)."""
    stored = trainer.bank["delta"][batch.index].float()
    return interpolate(stored, size=trainer.canvas[2:], mode="nearest-exact")


def on_its_own(batch: Batch) -> Batch:
    """The batch as if it were the whole training set, with the same crop and flip."""
    return replace(batch, index=torch.arange(len(batch), device=batch.index.device))
