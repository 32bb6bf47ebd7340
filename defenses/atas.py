"""Adversarial training with adaptive step size (Huang et al.; thesis, section 5.2)."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from attacks.ascent import ascend
from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.rules import fraction_of_training, not_negative, positive
from bench.core.specs import Length, OfEps, in_units
from bench.training.perturbation_bank import carried_start, carry, start_bank

PAPER_EPS, PAPER_BATCH = 8 / 255, 128  # for which the published c was chosen


@dataclass(frozen=True, kw_only=True)
class AverageConfig(TrainingConfig):
    beta: float = 0.5  # momentum of the moving average v of squared gradient norms
    store_size: int = 0  # side of a stored perturbation, as 32 for ImageNet; 0 for that of the padded image

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(beta=(0 <= self.beta < 1, "in [0, 1)"), store_size=not_negative(self.store_size))


ConfigT = TypeVar("ConfigT", bound=AverageConfig)


class AdaptiveStepSize(Defense[ConfigT]):
    """Base class of the two methods: Algorithm 5.3, except line 6. Comments give its line numbers."""

    supported_settings = ("awp", "label_smoothing", "cutmix")
    norms = ("Linf",)

    def prepare(self, trainer: Trainer) -> None:
        trainer.bank["v"] = torch.zeros(trainer.examples, device=trainer.generator.device)  # line 1: v_i = 0
        start_bank(trainer, size=self.config.store_size)  # line 2: x_i^(0) = x_i + U(-eps, eps)

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        x_adv = ascend(  # line 7
            trainer.model, batch.x, batch.target, threat=trainer.threat, steps=1,
            alpha=self.step_sizes(batch, trainer), start=carried_start(trainer, batch),
        )  # fmt: skip
        carry(trainer, batch, x_adv)
        trainer.update(lambda: self.cross_entropy(trainer.model(x_adv), batch.target))  # line 8

    @abstractmethod
    def step_sizes(self, batch: Batch, trainer: Trainer) -> float | Callable[[Tensor], Tensor]:
        """The step size of all examples, or a function that computes those (B,) of the batch from the gradient."""

    def averaged(self, gradient: Tensor, batch: Batch, trainer: Trainer) -> Tensor:
        """Line 5: the moving averages v (B,), updated with the norms of the gradient (B,C,H,W)."""
        square = gradient.flatten(1).square().sum(dim=1)
        v = self.config.beta * batch.read(trainer.bank["v"]) + (1 - self.config.beta) * square
        batch.write(trainer.bank["v"], v)
        return v


@dataclass(frozen=True, kw_only=True)
class Config(AverageConfig):
    c: float = 0.01  # scale of sqrt(v) in the step size, at eps 8/255 and for gradients of the mean over a batch of 128
    initial_step: Length = OfEps(2.0)  # the step size where there was no gradient, before the clamp
    smallest: float = 0.5  # step sizes are clamped to [smallest, largest], in units of eps
    largest: float = 1.75  # see smallest
    step_size: Literal["released"] = "released"  # rule of the authors' code; the text's Eq. 5.16 is atas-text
    warm_up: float = 5 / 30  # fraction of the training with the constant step size eps
    resets: tuple[float, ...] = (10 / 30, 20 / 30)  # fractions after which perturbations are drawn again
    omitted_at_default: ClassVar[tuple[str, ...]] = ("initial_step", "store_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            c=positive(self.c),
            initial_step=positive(self.initial_step),
            smallest=(0 <= self.smallest <= self.largest, f"from 0 to largest = {self.largest}"),
            warm_up=fraction_of_training(self.warm_up),
            resets=(all(0 <= r <= 1 for r in self.resets), "fractions of the training, in [0, 1]"),
        )


@registry.defense("atas")
class ATAS(AdaptiveStepSize[Config]):
    """ATAS: one-step adversarial training with a smaller step for examples whose past gradients were large.

    Thesis, Algorithm 5.3. Perturbations are stored from epoch to epoch, in float16, and follow the crop and flip of
    their image. `resets` are fractions of the training, rounded to the end of an epoch (after 10 and 20 of 30 epochs;
    the released code resets after 9 and 19). A reset that would discard perturbations before their second epoch is
    skipped, with a warning.

    Deviations: the step size is that of the released code, a_i = 2 eps / (1 + sqrt(v_i) / c) clamped to
    [eps/2, 1.75 eps], after a warm-up with a_i = eps that does not update v. `atas-text` is the algorithm of the
    text. The published c is for eps 8/255 and gradients of a batch mean. Here it is scaled with eps, and gradients of
    the example's own loss are divided by 128, so that the batch size does not matter. For ImageNet (eps 2/255) the text
    has C = .1 and steps of 16/255 at v = 0: here c=0.4 and initial_step=16/255; the clamp then determines most steps.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 98.3 +- 0.2, certified
    0.0 +- 0.0, attacked 64.1 +- 1.0.
    """

    config_class = Config

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"warm_up": (self.config.warm_up,)}

    def prepare(self, trainer: Trainer) -> None:
        super().prepare(trainer)
        kept = self.reset_epochs(trainer.epochs)
        wanted = [fraction for fraction in self.config.resets if 0 < fraction < 1]
        if len(kept) < len(wanted):
            trainer.warn(
                f"resets: {len(kept)} of {len(wanted)} take place in {trainer.epochs} epochs, because perturbations "
                "are used in at least two"
            )

    def step_sizes(self, batch: Batch, trainer: Trainer) -> float | Callable[[Tensor], Tensor]:
        if trainer.progress < self.config.warm_up:
            return trainer.eps
        return lambda gradient: self.alpha(self.averaged(gradient / PAPER_BATCH, batch, trainer), trainer.eps)

    def end_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch + 1 in self.reset_epochs(trainer.epochs):
            start_bank(trainer, size=self.config.store_size)

    def reset_epochs(self, epochs: int) -> list[int]:
        """The epochs, counted from 1, after which a training of `epochs` epochs draws the perturbations again."""
        kept = [0]
        for epoch in sorted({round(fraction * epochs) for fraction in self.config.resets}):
            if kept[-1] + 2 <= epoch < epochs:
                kept.append(epoch)
        return kept[1:]

    def alpha(self, v: Tensor, eps: float) -> Tensor:
        """Line 6: step sizes (B,) for moving averages v (B,), as the released code has Eq. 5.16."""
        config = self.config
        c, initial_step = config.c * eps / PAPER_EPS, in_units(config.initial_step, eps)
        return (initial_step / (1 + v.sqrt() / c)).clamp(config.smallest * eps, config.largest * eps)


@dataclass(frozen=True, kw_only=True)
class TextConfig(AverageConfig):
    gamma: Length = 0.01 * 16 / 255  # numerator of the step size (alpha in Eq. 5.16); 0.02eps is the same at eps 8/255
    c: float = 0.01  # C of the denominator; 0.1, with gamma=1.6/255, for ImageNet
    root: Literal["sum", "v"] = "sum"  # argument of the root: sqrt(v + C), as in Eq. 5.16; or sqrt(v) + C
    monotone: bool = False  # the largest v so far is used, as in Eq. 5.23

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(gamma=positive(self.gamma), c=positive(self.c))


@registry.defense("atas-text")
class ATASText(AdaptiveStepSize[TextConfig]):
    """ATAS with the step size of the thesis' text, gamma / sqrt(v + C), without clamp, warm-up or reset.

    Thesis, Algorithm 5.3 and Eq. 5.15, 5.16; `monotone` is Eq. 5.23. Nothing is scaled with eps or the batch size. The
    equation and the text disagree: section 5.2.4 says that the step of an example without gradient is gamma / C =
    16/255, which holds for `root=v`, gamma / (sqrt(v) + C). With `root=sum` it is gamma / sqrt(C) = 1.6/255. In both
    cases, an example with a gradient norm of about 1 has steps below 0.2/255, so the training is nearly one on uniform
    noise. `atas` has the step size that gave the published figures.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 97.4 +- 0.2, certified
    0.0 +- 0.0, attacked 2.1 +- 0.9.
    """

    config_class = TextConfig

    def prepare(self, trainer: Trainer) -> None:
        super().prepare(trainer)
        if self.config.monotone:
            trainer.bank["v_largest"] = torch.zeros_like(trainer.bank["v"])

    def step_sizes(self, batch: Batch, trainer: Trainer) -> Callable[[Tensor], Tensor]:
        config = self.config

        def of_gradient(gradient: Tensor) -> Tensor:
            v = self.averaged(gradient, batch, trainer)
            if config.monotone:
                v = torch.maximum(v, batch.read(trainer.bank["v_largest"]))
                batch.write(trainer.bank["v_largest"], v)
            gamma = in_units(config.gamma, trainer.eps)
            steps: Tensor = gamma / ((v + config.c).sqrt() if config.root == "sum" else v.sqrt() + config.c)  # line 6
            return steps

        return of_gradient
