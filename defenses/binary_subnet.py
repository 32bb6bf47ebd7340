"""Robust subnetworks of randomly initialised binary networks (Liu et al.; thesis, section 5.1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks.pgd import ascend
from bench.core import registry
from bench.core.config import Schedule, TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.errors import UserError
from bench.core.specs import Length, OfEps, in_units
from bench.training.perturbation_bank import BankConfig, carried_start, carry, reset_bank, start_bank
from bench.training.subnet import adaptive_budgets, linear_layers, mask_layers, masks


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    epochs: int = 400
    batch_size: int = 256
    schedule: Schedule = "cosine"
    validation: float = 0.02
    select: Literal["last", "best"] = "best"
    r: float = 0.99  # share of the weights that are pruned
    gamma: float = 0.1  # 1: each layer keeps the same share of its weights, 0: the same number
    score_range: float = 0.01  # scores start as U[-a, a]
    rank: Literal["score", "magnitude"] = "score"  # magnitude: the released code's order
    steps: int = 10  # of the attack
    alpha: Length = OfEps(0.25)  # step size of the attack
    attack_mode: Literal["eval", "train"] = "eval"  # train: the released code's batch norm during the attack

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            r=(0 < self.r < 1, "in (0, 1)"),
            gamma=(0 <= self.gamma <= 1, "in [0, 1]"),
            score_range=(self.score_range > 0, "positive"),
        )


@dataclass(frozen=True, kw_only=True)
class FastConfig(Config, BankConfig):
    epochs: int = 100
    steps: int = 1
    alpha: Length = OfEps(0.5)


ConfigT = TypeVar("ConfigT", bound=Config)


def binarise(model: nn.Module, output: nn.Linear) -> nn.Module:
    """Weights +1 and -1, no bias, batch norm without affine parameters, and a batch norm over the logits."""
    for layer in linear_layers(model):
        layer.bias = None
        layer.weight.data = torch.where(layer.weight >= 0, 1.0, -1.0)
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]:
        norm.affine, norm.weight, norm.bias = False, None, None  # type: ignore[assignment]
    return nn.Sequential(model, nn.BatchNorm1d(output.out_features, affine=False))


class Subnet(Defense[ConfigT]):
    """Algorithm 5.1, which the two methods share. Comments count the lines of its box."""

    def build(self, model: nn.Module) -> nn.Module:
        layers = linear_layers(model)
        last = layers[-1]
        if not isinstance(last, nn.Linear):
            raise UserError("binary-subnet needs a model whose last layer is linear; use another --model")
        budgets = adaptive_budgets([layer.weight.numel() for layer in layers], 1 - self.config.r, self.config.gamma)
        model = binarise(model, last)
        mask_layers(model, budgets, self.config.score_range, self.config.rank)
        return model

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        return [mask.scores for mask in masks(model)]

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config = self.config
        x_adv, _ = ascend(  # lines 4 to 9
            trainer.model, batch.x, batch.y, threat=trainer.threat, steps=config.steps,
            alpha=in_units(config.alpha, trainer.eps), start=self.start(batch, trainer), mode=config.attack_mode,
        )  # fmt: skip
        self.store(batch, trainer, x_adv)
        trainer.update(cross_entropy(trainer.model(x_adv), batch.y))  # lines 11 and 12

    def start(self, batch: Batch, trainer: Trainer) -> Tensor:
        """The starting points of the attack, (B,C,H,W): uniform in the ball."""
        return trainer.threat.random_start(batch.x, trainer.generator)

    def store(self, batch: Batch, trainer: Trainer, x_adv: Tensor) -> None:
        """Called after the attack, with its result."""


@registry.defense("binary-subnet")
class BinarySubnet(Subnet[Config]):
    """A robust subnetwork of a random binary network: training selects weights and changes none.

    Thesis, Algorithm 5.1 (edge pop-up with PGD), adaptive pruning (Eq. 5.11), binary initialisation and last batch norm
    (5.1.3). The weights of all linear and convolutional layers are the signs of the architecture's default
    initialisation. Biases, which are zero in the text, are removed. Weights are ranked by their score, as in the text;
    the released code ranks by its absolute value (`rank=magnitude`). Deviation: the attack steps along the gradient's
    sign (Linf) or the normalised gradient (L2), as PGD does; the box of the algorithm steps along the gradient itself.

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 3 seeds, 360 test images):
    clean 97.8 +- 0.3, certified 0.0 +- 0.0, attacked 43.8 +- 2.0. mnist (cnn, Linf 0.1, 2 epochs, 3 seeds, 1,000 test
    images): clean 89.1 +- 1.0, certified 0.5 +- 0.5, attacked 61.9 +- 1.3.
    """

    config_class = Config


@registry.defense("binary-subnet-fast")
class BinarySubnetFast(Subnet[FastConfig]):
    """binary-subnet with ATTA instead of PGD: one-step attacks that start from the last epoch's perturbation.

    Thesis, section 5.1.4 (FGSM with ATTA).

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 3 seeds, 360 test images):
    clean 98.5 +- 0.4, certified 0.0 +- 0.0, attacked 38.3 +- 1.3. mnist (cnn, Linf 0.1, 2 epochs, 3 seeds, 1,000 test
    images): clean 92.1 +- 0.6, certified 0.0 +- 0.1, attacked 60.6 +- 2.0.
    """

    config_class = FastConfig

    def prepare(self, trainer: Trainer) -> None:
        start_bank(trainer, self.config.start_std, self.config.store_size)

    def start(self, batch: Batch, trainer: Trainer) -> Tensor:
        return carried_start(trainer, batch)

    def store(self, batch: Batch, trainer: Trainer, x_adv: Tensor) -> None:
        carry(trainer, batch, x_adv)

    def end_epoch(self, trainer: Trainer) -> None:
        reset_bank(trainer, self.config)
