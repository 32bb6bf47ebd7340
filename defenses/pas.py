"""PAS: periodic adversarial scheduling (Liu et al., 2020; thesis, section 4.2.4)."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from torch import nn

from attacks.inner_attacks import pgd_from_random_start
from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.specs import Length, OfEps
from bench.training.snapshots import Snapshots


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    epochs: int = 200
    weight_decay: float = 1e-3
    periods: tuple[float, ...] = (0.5, 0.75)  # fractions at which a new period begins: epochs 100 and 150 of 200
    eps_growth: Literal["none", "linear", "cosine"] = "cosine"  # growth of eps in each period
    eps_max: Length = OfEps(2.0)  # 16/255 for CIFAR-10 at eps 8/255; 1.5eps (cosine) and 2eps (linear) for MNIST
    ensemble: bool = True  # average the outputs of the networks at the ends of the periods; false: only the last one
    steps: int = 10  # steps of the attack
    alpha: Length = OfEps(0.25)  # step size of the attack, in units of the current eps

    def __post_init__(self) -> None:
        super().__post_init__()
        averages = self.ema > 0 or self.swa > 0
        self.check(ensemble=(not (self.ensemble and averages), "false with a weight average (ema, swa)"))
        self.check(select=(not self.ensemble or self.select == "last", "last with an ensemble"))


@registry.defense("pas")
class PAS(Defense[Config]):
    """PAS: PGD training in periods of growing eps and falling learning rate; ensemble of the networks at their ends.

    Thesis, section 4.2.4 and Eq. 4.29. The ensemble is the mean of the softmax outputs of the networks at the ends of
    the periods, as one network: attacks maximise -log of the mean probability. Bounds do not support softmax, so only
    `smoothing` can certify it. Deviation: eps changes with each step, not with each epoch.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 1 seed, 360 test images): clean 98.3, certified 0.0, attacked
    63.3.
    """

    config_class = Config
    supported_settings = ("awp", "label_smoothing", "cutmix", "extra")

    def build(self, model: nn.Module) -> nn.Module:
        return Snapshots(model, len(self.config.periods) + 1) if self.config.ensemble else model

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return list((model.live if isinstance(model, Snapshots) else model).parameters())

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, model = self.config, trainer.model
        with model.without_snapshots() if isinstance(model, Snapshots) else nullcontext():
            x_adv = pgd_from_random_start(
                model, batch.x, batch.target, threat=trainer.threat, steps=config.steps, alpha=config.alpha,
                generator=trainer.generator,
            )  # fmt: skip
        trainer.update(lambda: self.cross_entropy(model(x_adv), batch.target))

    def end_epoch(self, trainer: Trainer) -> None:
        ends = trainer.ends_at(*self.config.periods) or trainer.epoch + 1 == trainer.epochs
        if ends and isinstance(trainer.model, Snapshots):
            trainer.model.take()
