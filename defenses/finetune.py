"""Adversarial fine-tuning of trained weights, with additional data (thesis, section 4.3.5)."""

from dataclasses import dataclass

from torch import Tensor

from attacks.inner_attacks import pgd_from_random_start
from attacks.losses import kl, label_probability
from bench.core import registry
from bench.core.config import Schedule
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.rules import not_negative
from bench.training.pgd_config import PGDConfig
from bench.training.weights_from_file import read_weights


@dataclass(frozen=True, kw_only=True)
class Config(PGDConfig):
    epochs: int = 1
    lr: float = 1e-3
    schedule: Schedule = "constant"
    checkpoint: str = ""  # file of weights of this architecture, from which the training starts
    reweight: bool = True  # RW: examples are weighted by the probability of their label
    beta: float = 6.0  # KL: lambda, the weight of the divergence of attacked from clean outputs; 0 for none

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(beta=not_negative(self.beta))


@registry.defense("finetune")
class FineTune(Defense[Config]):
    """Fine-tuning: PGD training of finished weights at a small learning rate, with additional data, RW and KL.

    Thesis, section 4.3.5, L_FT: sum of w_i (CE(f(x_i'), y_i) + lambda KL(p_i || p_i')), with w_i proportional to
    p_y(x_i') without a gradient (RW) or uniform. The additional data are the setting `extra`; the thesis takes half of
    each batch from them. An epoch uses each training example once; the thesis counts epochs of the additional data. The
    cost of the first training is not counted.

    Evidence: not yet reproduced.
    """

    config_class = Config
    supported_settings = ("awp", "label_smoothing", "extra")

    def prepare(self, trainer: Trainer) -> None:
        trainer.model.load_state_dict(read_weights(self.config.checkpoint, "checkpoint", trainer.model), strict=True)

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, model, y = self.config, trainer.model, batch.y
        x_adv = pgd_from_random_start(
            model, batch.x, y, threat=trainer.threat, steps=config.steps, alpha=config.alpha,
            generator=trainer.generator,
        )  # fmt: skip

        def loss() -> Tensor:
            logits_adv = model(x_adv)
            losses = self.cross_entropy(logits_adv, y, reduction="none")
            if config.beta:
                losses = losses + config.beta * kl(model(batch.x), logits_adv)
            if not config.reweight:
                return losses.mean()
            weights = label_probability(logits_adv.detach(), y)
            return (weights * losses).sum() / weights.sum()

        trainer.update(loss)
