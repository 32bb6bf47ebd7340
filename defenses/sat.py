"""SAT: self-adaptive training (Huang et al., 2020)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from attacks.inner_attacks import trades_attack
from attacks.losses import kl
from bench.core import registry
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.rules import fraction_of_training, not_negative
from bench.training.moving_targets import move_targets
from bench.training.pgd_config import PGDConfig


@dataclass(frozen=True, kw_only=True)
class Config(PGDConfig):
    epochs: int = 100
    milestones: tuple[float, ...] = (0.75, 0.9)
    beta: float = 6.0  # weight of the KL divergence
    momentum_of_targets: float = 0.9  # momentum of the moving average of predictions
    start: float = 0.7  # fraction of the training after which the targets move: 90 of 200 epochs in the thesis
    start_std: float = 0.001  # standard deviation of the noise from which the attack starts

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            beta=not_negative(self.beta),
            momentum_of_targets=(0 <= self.momentum_of_targets < 1, "in [0, 1)"),
            start=fraction_of_training(self.start),
            start_std=not_negative(self.start_std),
        )


@registry.defense("sat")
class SAT(Defense[Config]):
    """SAT: TRADES with labels that move towards the model's predictions on clean images, and example weights.

    Huang et al. (2020), Algorithm 1: t_i <- momentum t_i + (1 - momentum) p(x_i), with the weight max_j t_ij; for
    adversarial training, this weighted cross entropy replaces the first term of TRADES. Before `start` the training is
    TRADES. The weight decay and the step size of the attack are those of pgd-at; the authors' are 2e-4 and 0.007 at eps
    0.031.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 95.9 +- 0.4, certified
    3.8 +- 1.9, attacked 66.7 +- 0.9.
    """

    config_class = Config

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"start": (self.config.start,)}

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, model, x = self.config, trainer.model, batch.x
        x_adv = trades_attack(
            model, x, batch.y, threat=trainer.threat, steps=config.steps, alpha=config.alpha, std=config.start_std,
            generator=trainer.generator,
        )  # fmt: skip
        logits, logits_adv = model(x), model(x_adv)
        if trainer.progress < config.start:
            loss = cross_entropy(logits, batch.y)
        else:
            targets = move_targets(trainer, batch, logits, config.momentum_of_targets)
            weights = targets.amax(dim=1)
            loss = (weights * cross_entropy(logits, targets, reduction="none")).sum() / weights.sum()
        trainer.update(loss + config.beta * kl(logits, logits_adv).mean())
