"""HYDRA (Sehwag et al., 2020): adversarial training selects which weights of a trained network are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from attacks.inner_attacks import pgd_from_random_start, trades_attack
from attacks.losses import kl
from bench.core import registry
from bench.core.config import Schedule
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.rules import not_negative
from bench.training.architecture import Layer, fan_in, latent, linear_layers
from bench.training.pgd_config import PGDConfig
from bench.training.pruning import BudgetConfig, ScoredMask, highest, register_masks, set_masks, weight_mask


@dataclass(frozen=True, kw_only=True)
class Config(BudgetConfig, PGDConfig):
    epochs: int = 220
    schedule: Schedule = "cosine"
    periods: tuple[float, ...] = (100 / 220, 120 / 220)  # where pre-training ends, and where pruning ends
    objective: Literal["trades", "pgd"] = "trades"  # pgd: cross entropy at the points of PGD
    beta: float = 6.0  # for objective=trades: weight of the KL divergence
    start_std: float = 0.001  # for objective=trades: standard deviation of the noise from which the attack starts

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            beta=not_negative(self.beta),
            periods=(len(self.periods) == 2, "two fractions: where pre-training ends, and where pruning ends"),
        )


@registry.defense("hydra")
class HYDRA(Defense[Config]):
    """HYDRA: pre-training, then learned scores of the weights choose a mask, then the kept weights are fine-tuned.

    Sehwag et al. (2020), Eq. 3 to 5, in one training: the scores start as w sqrt(6 / l) / max |w| in layers of l
    inputs, and the mask keeps the largest absolute scores. No weight or bias changes while scores are trained; batch
    norm does. The weights are trained by TRADES, the authors' adversarial mode. The thesis also prunes by Eq. 5.11
    (`gamma=0.1`), and BinaryConnect makes the network binary (`binary=true`). Deviation: the learning rate starts at
    `lr` in each of the three periods; the authors fine-tune at a tenth of it.

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 5 seeds, 360 test images):
    clean 97.4 +- 0.2, certified 0.0 +- 0.0, attacked 68.0 +- 1.0.
    """

    config_class = Config
    supported_settings = ("label_smoothing",)

    def build(self, model: nn.Module) -> nn.Module:
        self.config.budget(model)  # UserError before the training
        register_masks(model, ScoredMask)
        return model

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config = self.config
        if trainer.progress >= config.periods[0]:
            self.start_pruning(trainer.model)
        x_adv = self.attacked(batch, trainer)

        def loss() -> Tensor:
            logits_adv = trainer.model(x_adv)
            if config.objective == "pgd":
                return self.cross_entropy(logits_adv, batch.y)
            logits = trainer.model(batch.x)
            clean_loss = self.cross_entropy(logits, batch.y)
            return clean_loss + config.beta * kl(logits, logits_adv).mean()

        with training_only(trainer.model, scores=self.is_pruning(trainer)):
            trainer.update(loss())

    def attacked(self, batch: Batch, trainer: Trainer) -> Tensor:
        """The result of PGD on the cross entropy, or on the KL divergence, (B,C,H,W)."""
        config, model, x = self.config, trainer.model, batch.x
        if config.objective == "pgd":
            return pgd_from_random_start(
                model, x, batch.y, threat=trainer.threat, steps=config.steps, alpha=config.alpha,
                generator=trainer.generator,
            )  # fmt: skip
        return trades_attack(
            model, x, batch.y, threat=trainer.threat, steps=config.steps, alpha=config.alpha, std=config.start_std,
            generator=trainer.generator,
        )  # fmt: skip

    def is_pruning(self, trainer: Trainer) -> bool:
        return self.config.periods[0] <= trainer.progress < self.config.periods[1]

    def start_pruning(self, model: nn.Module) -> None:
        """Set scores proportional to the weights, and their mask, unless there is already a mask."""
        layers = linear_layers(model)
        if not all(bool(weight_mask(layer).mask.all()) for layer in layers):
            return
        for layer in layers:
            weight, scores = latent(layer).detach(), scores_of(layer)
            scores.data = (6 / fan_in(weight)) ** 0.5 * weight / weight.abs().max()
        self.choose(model)

    def choose(self, model: nn.Module) -> None:
        """Keep the weights with the largest absolute scores."""
        layers = linear_layers(model)
        set_masks(layers, highest([scores_of(layer).detach().abs() for layer in layers], self.config.budget(model)))

    def after_step(self, trainer: Trainer) -> None:
        if self.is_pruning(trainer):
            self.choose(trainer.model)

    def end_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch + 1 == trainer.epochs:  # a training that is too short for three periods
            self.start_pruning(trainer.model)


def scores_of(layer: Layer) -> nn.Parameter:
    mask = weight_mask(layer)
    assert isinstance(mask, ScoredMask)
    return mask.scores


@contextmanager
def training_only(model: nn.Module, *, scores: bool) -> Iterator[None]:
    """Inside the block only the scores of linear and convolutional layers are trained, or only the rest."""
    for layer in linear_layers(model):
        scores_of(layer).requires_grad_(scores)
        for parameter in (latent(layer), layer.bias):
            if parameter is not None:
                parameter.requires_grad_(not scores)
    with parametrize.cached():
        yield
