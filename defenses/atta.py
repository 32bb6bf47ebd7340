"""Adversarial training with transferable adversarial examples (Zheng et al., 2020), and two variants of the thesis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from attacks.ascent import ascend
from attacks.losses import label_probability
from bench.core import registry
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.rules import fraction_of_training
from bench.core.specs import Length, OfEps, in_units
from bench.training.moving_targets import move_targets
from bench.training.perturbation_bank import BankConfig, carried_start, carry, reset_bank, start_bank


@dataclass(frozen=True, kw_only=True)
class Config(BankConfig):
    steps: int = 1  # steps of the attack
    alpha: Length = OfEps(0.5)  # step size of the attack: 4/255 at eps 8/255


ConfigT = TypeVar("ConfigT", bound=Config)


class StoredPerturbations(Defense[ConfigT]):
    """Base class of the three methods, with their attack and bank."""

    def prepare(self, trainer: Trainer) -> None:
        start_bank(trainer, self.config.start_std, self.config.store_size)

    def attacked(self, batch: Batch, trainer: Trainer) -> Tensor:
        x_adv = ascend(
            trainer.model, batch.x, batch.target, threat=trainer.threat, steps=self.config.steps,
            alpha=in_units(self.config.alpha, trainer.eps), start=carried_start(trainer, batch),
        )  # fmt: skip
        carry(trainer, batch, x_adv)
        return x_adv

    def end_epoch(self, trainer: Trainer) -> None:
        reset_bank(trainer, self.config)


@registry.defense("atta")
class ATTA(StoredPerturbations[Config]):
    """ATTA: the attack of each epoch starts from the perturbation of the epoch before.

    Zheng et al. (2020), Algorithm 1, with k = `steps` steps per epoch. Perturbations follow the crop and flip of their
    image and start as small Gaussian noise.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 98.5 +- 0.3, certified
    0.0 +- 0.0, attacked 63.6 +- 1.1.
    """

    config_class = Config
    supported_settings = ("awp", "label_smoothing", "cutmix")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        x_adv = self.attacked(batch, trainer)
        trainer.update(lambda: self.cross_entropy(trainer.model(x_adv), batch.target))


@dataclass(frozen=True, kw_only=True)
class WarmUpConfig(Config):
    epochs: int = 38
    milestones: tuple[float, ...] = (30 / 38, 36 / 38)
    warm_up: float = 5 / 38  # fraction of the training that is plain ATTA

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(warm_up=fraction_of_training(self.warm_up))


@registry.defense("atta-rw")
class ATTARW(StoredPerturbations[WarmUpConfig]):
    """ATTA-RW: ATTA with examples weighted by the probability of their label, so that hard ones count less.

    Thesis, Algorithm 4.1 with reweighting: w_i = p_y(x_i'), normalised over the batch, without a gradient. As in its
    Figure 4.25, the first epochs have no weights.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 94.4 +- 3.5, certified
    0.0 +- 0.0, attacked 64.5 +- 1.5.
    """

    config_class = WarmUpConfig
    supported_settings = ("awp", "label_smoothing")

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"warm_up": (self.config.warm_up,)}

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        x_adv = self.attacked(batch, trainer)

        def loss() -> Tensor:
            logits = trainer.model(x_adv)
            losses = self.cross_entropy(logits, batch.y, reduction="none")
            if trainer.progress < self.config.warm_up:
                return losses.mean()
            weights = label_probability(logits.detach(), batch.y)
            return (weights * losses).sum() / weights.sum()

        trainer.update(loss)


@dataclass(frozen=True, kw_only=True)
class TargetConfig(WarmUpConfig):
    rho: float = 0.9  # momentum of the moving average of predictions
    beta: float = 0.1  # weight of the label in the target; the rest is the moving average

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(rho=(0 <= self.rho < 1, "in [0, 1)"), beta=(0 <= self.beta <= 1, "in [0, 1]"))


@registry.defense("atta-at")
class ATTAAT(StoredPerturbations[TargetConfig]):
    """ATTA-AT: ATTA with adaptive targets, a mixture of the label and the average prediction at attacked images.

    Thesis, Algorithm 4.1 with adaptive targets: t = beta 1_y + (1 - beta) t~, t~ <- rho t~ + (1 - rho) p(x'). In the
    first epochs the targets are the labels, and t~ starts as the label after them.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 97.2 +- 0.3, certified
    0.0 +- 0.0, attacked 59.0 +- 2.6.
    """

    config_class = TargetConfig

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"warm_up": (self.config.warm_up,)}

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, y = self.config, batch.y
        x_adv = self.attacked(batch, trainer)
        logits = trainer.model(x_adv)
        if trainer.progress < config.warm_up:
            trainer.update(cross_entropy(logits, y))
        else:
            average = move_targets(trainer, batch, logits, config.rho)
            target = config.beta * one_hot(y, logits.shape[1]) + (1 - config.beta) * average
            trainer.update(cross_entropy(logits, target))
