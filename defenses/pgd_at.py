"""PGD adversarial training (Madry et al., 2018)."""

from dataclasses import dataclass
from typing import Literal

from torch.nn.functional import cross_entropy

from attacks.pgd import ascend
from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.specs import Length, OfEps, in_units


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    steps: int = 10  # of the attack
    alpha: Length = OfEps(0.25)  # 2/255 at eps 8/255
    attack_mode: Literal["eval", "train"] = "eval"  # of batch norm during the attack


@registry.defense("pgd-at")
class PGDAT(Defense[Config]):
    """PGD adversarial training: each step minimises the loss at the result of PGD from a uniform start.

    Madry et al. (2018). Under L2 the attack follows the normalised gradient.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 3 seeds, 360 test images): clean 98.1 +- 0.4, certified
    0.4 +- 0.4, attacked 67.8 +- 0.7. mnist (cnn, Linf 0.1, 2 epochs, 3 seeds, 1,000 test images): clean 98.4 +- 0.2,
    certified 64.4 +- 24.3, attacked 93.5 +- 0.7.
    """

    config_class = Config
    composes = ("awp", "label_smoothing")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, threat = self.config, trainer.threat
        x_adv, _ = ascend(
            trainer.model, batch.x, batch.y, threat=threat,
            steps=config.steps, alpha=in_units(config.alpha, trainer.eps),
            start=threat.random_start(batch.x, trainer.generator), mode=config.attack_mode,
        )  # fmt: skip
        smoothing = self.config.label_smoothing
        trainer.update(lambda: cross_entropy(trainer.model(x_adv), batch.y, label_smoothing=smoothing))


@dataclass(frozen=True, kw_only=True)
class AveragedConfig(Config):
    ema: float = 0.9995  # at CIFAR-10's 12,000 steps; a short training needs a smaller one


@registry.defense("pgd-at-wa")
class PGDATWA(PGDAT):
    """PGD-AT-WA: PGD adversarial training, of which the exponential average of the weights is evaluated.

    Izmailov et al. (2018) for the average; Rebuffi et al. (2021) for its gain in robustness.

    Evidence: not yet reproduced.
    """

    config_class = AveragedConfig
