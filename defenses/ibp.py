"""Training through interval bounds (Gowal et al., 2018)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.config import BoundsConfig
from bench.core.contracts import Batch, Defense, Trainer, mode_of
from bench.core.threat import ThreatModel
from certifiers.input_regions import region_of
from certifiers.interval_bounds import interval_margins
from certifiers.network import Network


@dataclass(frozen=True, kw_only=True)
class Config(BoundsConfig):
    milestones: tuple[float, ...] = (15 / 60, 25 / 60)
    kappa: float = 0.5  # the final weight of the clean loss
    warm_up: float = 2 / 60  # fraction of the training on clean images only
    ramp: float = 10 / 60  # fraction after it in which eps rises from 0 and kappa falls from 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            kappa=(0 <= self.kappa <= 1, "in [0, 1]"),
            warm_up=(0 <= self.warm_up <= 1, "a fraction of the training, in [0, 1]"),
            ramp=(0 < self.ramp <= 1, "a fraction of the training, in (0, 1]"),
        )


@registry.defense("ibp")
class IBP(Defense[Config]):
    """IBP: cross entropy of the worst logits under interval bounds, mixed with the cross entropy of the clean images.

    Gowal et al. (2018): kappa l(z) + (1 - kappa) l(z_worst), with the last layer merged into the worst logits. The
    defaults are the paper's for MNIST (60,000 steps). Batch norm is in eval mode in the bounds.

    Deviations: training has the eps of the run, while the paper trains with a larger eps than it tests; eps and kappa
    change once per epoch, not per step. The IBP models of the thesis had the schedules of Zhang et al. (2020) and
    B' = 20, which are not implemented here.

    Evidence: digits (small-cnn, Linf 0.2, 200 epochs, 3 seeds, 360 test images): clean 87.4 +- 1.8, certified
    50.8 +- 3.7, attacked 50.8 +- 3.7. mnist (cnn, Linf 0.1, 10 epochs, 3 seeds, 1,000 test images): clean 94.5 +- 0.7,
    certified 84.0 +- 2.5, attacked 84.9 +- 1.8.
    """

    config_class = Config

    def prepare(self, trainer: Trainer) -> None:
        ramp = [self.ramp(epoch / trainer.epochs) for epoch in range(trainer.epochs)]
        if ramp[-1] < 1:
            trainer.warn(f"ramp: the last of {trainer.epochs} epochs has {ramp[-1]:.0%} of eps; train for more epochs")
        elif not any(0 < position < 1 for position in ramp):
            trainer.warn(f"ramp: eps rises at once in a training of {trainer.epochs} epochs; train for more epochs")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        loss, ramp = cross_entropy(trainer.model(batch.x), batch.y), self.ramp(trainer.epoch / trainer.epochs)
        if ramp > 0:
            kappa = 1 - (1 - self.config.kappa) * ramp
            threat = replace(trainer.threat, eps=ramp * trainer.eps)
            worst = worst_logits(trainer.model, batch.x, batch.y, threat)
            loss = kappa * loss + (1 - kappa) * cross_entropy(worst, batch.y)
        trainer.update(loss)

    def ramp(self, progress: float) -> float:
        """The position in the ramp of eps and kappa at a share `progress` of the epochs: from 0 to 1, its end."""
        position = (progress - self.config.warm_up) / self.config.ramp
        return min(1.0, max(0.0, position))


def worst_logits(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Upper bounds of z_j - z_y over the threat model, (B,K), 0 at the label."""
    with mode_of(model, training=False):
        margins = interval_margins(Network(model, x[:1]), region_of(x, threat), y)
    return (-margins).scatter(1, y[:, None], torch.zeros_like(margins[:, :1]))
