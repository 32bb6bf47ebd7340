"""Adversarial training with transferable adversarial examples (Zheng et al., 2020)."""

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from attacks.pgd import ascend
from bench.core import registry
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.specs import Length, OfEps, in_units
from bench.training.perturbation_bank import BankConfig, carried_start, carry, reset_bank, start_bank


@dataclass(frozen=True, kw_only=True)
class Config(BankConfig):
    steps: int = 1  # of the attack
    alpha: Length = OfEps(0.5)  # 4/255 at eps 8/255


@registry.defense("atta")
class ATTA(Defense[Config]):
    """ATTA: the attack of each epoch starts from the perturbation of the epoch before.

    Zheng et al. (2020), Algorithm 1, with k = `steps` steps per epoch. Perturbations follow the crop and flip of their
    image and start as small Gaussian noise.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 3 seeds, 360 test images): clean 98.3 +- 0.3, certified
    0.0 +- 0.0, attacked 63.4 +- 1.6. mnist (cnn, Linf 0.1, 2 epochs, 3 seeds, 1,000 test images): clean 98.6 +- 0.2,
    certified 15.3 +- 2.7, attacked 92.4 +- 0.6.
    """

    config_class = Config

    def prepare(self, trainer: Trainer) -> None:
        start_bank(trainer, self.config.start_std)

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        x_adv, _ = ascend(
            trainer.model, batch.x, batch.y, threat=trainer.threat, steps=self.config.steps,
            alpha=in_units(self.config.alpha, trainer.eps), start=carried_start(trainer, batch),
        )  # fmt: skip
        carry(trainer, batch, x_adv)
        trainer.update(cross_entropy(trainer.model(x_adv), batch.y))

    def end_epoch(self, trainer: Trainer) -> None:
        reset_bank(trainer, self.config)
