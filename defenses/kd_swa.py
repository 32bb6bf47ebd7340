"""KD-SWA: adversarial training smoothed by distillation and weight averaging (Chen et al., 2021)."""

from dataclasses import dataclass

from torch import Tensor

from attacks.inner_attacks import pgd_from_random_start
from attacks.losses import kl
from bench.core import registry
from bench.core.contracts import Batch, Defense, Trainer, mode_of
from bench.core.rules import positive
from bench.training.pgd_config import PGDConfig
from bench.training.weights_from_file import logits_with, read_weights, store

TEACHERS = ("robust_teacher", "standard_teacher")


@dataclass(frozen=True, kw_only=True)
class Config(PGDConfig):
    epochs: int = 200
    milestones: tuple[float, ...] = (0.25, 0.75)
    swa: float = 0.275  # fraction of the training after which the weights are averaged: epoch 55 of 200
    robust_teacher: str = ""  # file of weights of this architecture, trained by pgd-at
    standard_teacher: str = ""  # file of weights of this architecture, trained by standard
    robust_share: float = 0.6  # weight of the distillation from the robust teacher
    standard_share: float = 0.1  # weight of the distillation from the standard teacher; the labels have the rest
    temperature: float = 2.0  # temperature of the distillation

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            robust_share=(0 <= self.robust_share <= 1, "in [0, 1]"),
            standard_share=(0 <= self.standard_share <= 1 - self.robust_share, "from 0 to 1 - robust_share"),
            temperature=positive(self.temperature),
        )


@registry.defense("kd-swa")
class KDSWA(Defense[Config]):
    """KD-SWA: PGD training with soft labels of a robust and a standard teacher, and averaged weights.

    Chen et al. (2021), "Robust Overfitting may be mitigated by properly learned smoothening": the loss is
    (1 - a - b) CE(f(x'), y) + a KD(f(x'), robust(x')) + b KD(f(x'), standard(x')), KD = T^2 KL(teacher / T || f / T).
    The teachers see the attacked images; they are finished trainings of the same architecture, and their cost is not
    counted. Shares, temperature, milestones and the start of the average are those of the authors' code.

    Evidence: not yet reproduced.
    """

    config_class = Config
    supported_settings = ("awp", "label_smoothing", "extra")

    def prepare(self, trainer: Trainer) -> None:
        for teacher in TEACHERS:
            file: str = getattr(self.config, teacher)
            store(trainer.bank, teacher, read_weights(file, teacher, trainer.model))

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, model = self.config, trainer.model
        x_adv = pgd_from_random_start(
            model, batch.x, batch.y, threat=trainer.threat, steps=config.steps, alpha=config.alpha,
            generator=trainer.generator,
        )  # fmt: skip
        with mode_of(model, training=False):
            robust, standard = (logits_with(model, trainer.bank, teacher, x_adv) for teacher in TEACHERS)
        t, a, b = config.temperature, config.robust_share, config.standard_share

        def loss() -> Tensor:
            logits = model(x_adv)
            distance = a * kl(robust / t, logits / t).mean() + b * kl(standard / t, logits / t).mean()
            labels = self.cross_entropy(logits, batch.y)
            return (1 - a - b) * labels + t**2 * distance

        trainer.update(loss)
