"""Perturbations that are kept from one epoch to the next: one per example, on its padded canvas, in float16."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Trainer


@dataclass(frozen=True, kw_only=True)
class BankConfig(TrainingConfig):
    """The settings of a defense whose perturbations start as Gaussian noise and are drawn again from time to time."""

    start_std: float = 0.001  # standard deviation of the noise from which the attacks start
    reset_every: int = 10  # epochs after which the perturbations are drawn again, at least 2: each is carried over once

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            start_std=(self.start_std >= 0, "not negative"),
            reset_every=(self.reset_every >= 2, "at least 2, so that perturbations are carried to another epoch"),
        )


def start_bank(trainer: Trainer, std: float | None = None) -> None:
    """Draw all perturbations: Gaussian with `std`, or uniform in [-eps, eps] if it is None."""
    distribution = torch.rand if std is None else torch.randn
    draw = distribution(trainer.canvas, generator=trainer.generator, device=trainer.generator.device)
    delta = draw.mul_(2).sub_(1).mul_(trainer.eps) if std is None else draw.mul_(std)
    trainer.bank["delta"] = delta.half()


def reset_bank(trainer: Trainer, config: BankConfig) -> None:
    """At the end of an epoch: draw all perturbations again if `reset_every` epochs have passed."""
    if (trainer.epoch + 1) % config.reset_every == 0:
        start_bank(trainer, config.start_std)


def carried_start(trainer: Trainer, batch: Batch) -> Tensor:
    """The batch's images plus their perturbations, (B,C,H,W), projected onto the threat model."""
    return trainer.threat.project(batch.x + batch.read(trainer.bank["delta"]), batch.x)


def carry(trainer: Trainer, batch: Batch, x_adv: Tensor) -> None:
    """Store x_adv - x for the next epoch."""
    batch.write(trainer.bank["delta"], x_adv - batch.x)
