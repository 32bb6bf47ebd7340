"""Training through interval bounds (Gowal et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer, mode_of
from bench.core.threat import ThreatModel
from certifiers.input_regions import region_of
from certifiers.intervals import interval_margins
from certifiers.network import Network


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    epochs: int = 100
    batch_size: int = 100
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = (15 / 60, 25 / 60)
    amp: Literal["auto", "off"] = "off"  # bfloat16 would bound nothing
    kappa: float = 0.5  # the clean loss' share in the end
    warm_up: float = 2 / 60  # share of the training on clean images alone
    ramp: float = 10 / 60  # share in which eps then rises from 0, and kappa falls from 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            kappa=(0 <= self.kappa <= 1, "in [0, 1]"),
            warm_up=(0 <= self.warm_up <= 1, "a fraction of the training, in [0, 1]"),
            ramp=(0 < self.ramp <= 1, "a fraction of the training, in (0, 1]"),
        )


@registry.defense("ibp")
class IBP(Defense[Config]):
    """IBP: cross entropy of the worst logits that interval bounds allow, mixed with that of the clean images.

    Gowal et al. (2018): kappa l(z) + (1 - kappa) l(z_worst), the last layer merged into the worst logits; the defaults
    are the paper's for MNIST (60,000 steps). The eps of training is that of the run; the paper trains with a larger one
    than it tests. Deviation: eps and kappa change from epoch to epoch, not from step to step. Batch norm is in eval
    mode in the bounds. The thesis' IBP models had the schedules of Zhang et al. (2020) and B' = 20, which is not this.

    Evidence: not yet reproduced.
    """

    config_class = Config

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        loss, done = cross_entropy(trainer.model(batch.x), batch.y), self.ramped(trainer)
        if done > 0:
            kappa = 1 - (1 - self.config.kappa) * done
            threat = replace(trainer.threat, eps=done * trainer.eps)
            worst = worst_logits(trainer.model, batch.x, batch.y, threat)
            loss = kappa * loss + (1 - kappa) * cross_entropy(worst, batch.y)
        trainer.update(loss)

    def ramped(self, trainer: Trainer) -> float:
        """How much of the ramp is behind us, in [0, 1]."""
        past = (trainer.epoch / trainer.epochs - self.config.warm_up) / self.config.ramp
        return min(1.0, max(0.0, past))


def worst_logits(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Upper bounds of z_j - z_y over the threat model, (B,K), 0 at the label."""
    with mode_of(model, training=False):
        margins = interval_margins(Network(model, x[:1]), region_of(x, threat), y)
    return (-margins).scatter(1, y[:, None], torch.zeros_like(margins[:, :1]))
