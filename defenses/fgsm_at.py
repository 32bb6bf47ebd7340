"""Adversarial training with one step: from the image, a random start (FGSM-RS) or a noisy image (N-FGSM)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from attacks.ascent import ascend
from bench.core import registry
from bench.core.config import Schedule, TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer, mode_of
from bench.core.rules import not_negative
from bench.core.specs import Length, OfEps, in_units


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    lr: float = 0.2
    schedule: Schedule = "triangular"
    alpha: Length = OfEps(1.0)  # step size of the attack
    attack_mode: Literal["eval", "train"] = "train"  # mode of batch norm during the attack


@registry.defense("fgsm-at")
class FGSMAT(Defense[Config]):
    """FGSM adversarial training: one step of eps from the clean image.

    Goodfellow et al. (2015), trained on adversarial examples alone. Long trainings at a large eps overfit to this
    attack; the PGD accuracy in the log shows this.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 98.7 +- 0.3, certified
    0.0 +- 0.0, attacked 57.6 +- 1.1.
    """

    config_class = Config
    supported_settings = ("awp", "label_smoothing", "cutmix", "extra")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        x_adv = ascend(
            trainer.model, batch.x, batch.target, threat=trainer.threat, steps=1, start=batch.x,
            alpha=in_units(self.config.alpha, trainer.eps), mode=self.config.attack_mode,
        )  # fmt: skip
        trainer.update(lambda: self.cross_entropy(trainer.model(x_adv), batch.target))


@dataclass(frozen=True, kw_only=True)
class RandomStartConfig(Config):
    alpha: Length = OfEps(1.25)  # step size of the attack


@registry.defense("fgsm-rs")
class FGSMRS(Defense[RandomStartConfig]):
    """FGSM-RS: adversarial training with one step of 1.25 eps from a uniform start, projected onto the ball.

    Wong et al. (2020), Algorithm 3. Batch norm is in train mode during the attack, as in the authors' code
    (`attack_mode=eval` changes it). The thesis also gives alpha = 1.75 eps.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 98.7 +- 0.2, certified
    0.0 +- 0.0, attacked 59.7 +- 1.3.
    """

    config_class = RandomStartConfig
    supported_settings = ("awp", "label_smoothing", "cutmix", "extra")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        threat = trainer.threat
        x_adv = ascend(
            trainer.model, batch.x, batch.target, threat=threat, steps=1, mode=self.config.attack_mode,
            alpha=in_units(self.config.alpha, trainer.eps), start=threat.random_start(batch.x, trainer.generator),
        )  # fmt: skip
        trainer.update(lambda: self.cross_entropy(trainer.model(x_adv), batch.target))


@dataclass(frozen=True, kw_only=True)
class NoisyConfig(Config):
    noise: float = 2.0  # half-width of the uniform noise, in units of eps

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(noise=not_negative(self.noise))


@registry.defense("n-fgsm")
class NFGSM(Defense[NoisyConfig]):
    """N-FGSM: one step of eps from an image with uniform noise of 2 eps, without a projection onto the ball.

    de Jorge et al. (2022), "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training". The noisy image
    and the result of the step are clamped to the range of pixels only, so the training sees perturbations of up to
    3 eps. Linf only.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 97.2 +- 0.7, certified
    0.0 +- 0.0, attacked 61.4 +- 2.4.
    """

    config_class = NoisyConfig
    supported_settings = ("awp", "label_smoothing", "cutmix", "extra")
    norms = ("Linf",)

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, threat, x = self.config, trainer.threat, batch.x
        uniform = 2 * torch.rand(x.shape, generator=trainer.generator, device=x.device) - 1
        noisy = threat.clamp(x + config.noise * trainer.eps * uniform).requires_grad_()
        with mode_of(trainer.model, training=config.attack_mode == "train"):
            loss = cross_entropy(trainer.model(noisy), batch.target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, noisy)
        length = in_units(config.alpha, trainer.eps)
        x_adv = threat.clamp(noisy.detach() + length * threat.steepest(gradient))
        trainer.update(lambda: self.cross_entropy(trainer.model(x_adv), batch.target))
