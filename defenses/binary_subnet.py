"""Robust subnetworks of randomly initialised networks (Liu et al.; Fu et al.; thesis, section 5.1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks.ascent import Step, ascend
from bench.core import registry
from bench.core.config import Schedule
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.errors import UserError
from bench.core.rules import positive
from bench.core.specs import Length, OfEps, in_units
from bench.training.architecture import fan_in, linear_layers
from bench.training.budgets import adaptive_budgets
from bench.training.perturbation_bank import BankConfig, carried_start, carry, reset_bank, start_bank
from bench.training.pgd_config import PGDConfig
from bench.training.pruning import weight_counts
from bench.training.subnet import Start, mask_layers, masks


@dataclass(frozen=True, kw_only=True)
class Config(PGDConfig):
    epochs: int = 400
    batch_size: int = 256
    schedule: Schedule = "cosine"
    validation: float = 0.02
    select: Literal["last", "best"] = "best"
    r: float = 0.99  # share of the weights that are pruned
    gamma: float = 0.1  # 1: each layer keeps the same share of its weights, 0: the same number
    score_range: float = 0.01  # scores start as U[-a, a]
    rank: Literal["score", "magnitude"] = "score"  # magnitude: the released code's order
    attack_mode: Literal["eval", "train"] = "eval"  # train: the released code's batch norm during the attack
    last_norm: bool = True  # a batch norm over the logits (LBN), as the last layer of the model
    init: Literal["binary", "kaiming"] = "binary"  # weights +-1, or +-sqrt(2 / (l (1 - r))) for layers of l inputs
    score_start: Literal["range", "fan-in"] = "range"  # a is score_range, or sqrt(1 / l) for layers of l inputs
    adversary: Literal["attack", "none"] = "attack"  # none: training on clean images
    step: Step = "auto"  # raw: the gradient itself, as the box of Algorithm 5.1 writes
    omitted_at_default: ClassVar[tuple[str, ...]] = ("last_norm", "init", "score_start", "adversary", "step")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            r=(0 < self.r < 1, "in (0, 1)"),
            gamma=(0 <= self.gamma <= 1, "in [0, 1]"),
            score_range=positive(self.score_range),
            binary=(not self.binary, "false, because the weights are fixed; init=binary makes them +1 and -1"),
        )


@dataclass(frozen=True, kw_only=True)
class FastConfig(Config, BankConfig):
    epochs: int = 100
    steps: int = 1
    alpha: Length = OfEps(0.5)
    omitted_at_default: ClassVar[tuple[str, ...]] = (*Config.omitted_at_default, *BankConfig.omitted_at_default)


@dataclass(frozen=True, kw_only=True)
class TicketConfig(Config):
    epochs: int = 160
    batch_size: int = 128
    validation: float = 0.0
    select: Literal["last", "best"] = "last"
    gamma: float = 1.0
    rank: Literal["score", "magnitude"] = "magnitude"
    last_norm: bool = False
    init: Literal["binary", "kaiming"] = "kaiming"
    score_start: Literal["range", "fan-in"] = "fan-in"


ConfigT = TypeVar("ConfigT", bound=Config)


@torch.no_grad()
def fix_weights(model: nn.Module, init: Literal["binary", "kaiming"], r: float) -> None:
    """Set constant weights with the signs of the initial ones; remove biases and the affine parameters of batch norms.

    Their absolute value is 1, or, by the signed Kaiming constant, sqrt(2 / (l (1 - r))) in a layer of l inputs.
    """
    for layer in linear_layers(model):
        value = 1.0 if init == "binary" else (2 / (fan_in(layer.weight) * (1 - r))) ** 0.5
        layer.bias = None
        layer.weight.data = torch.where(layer.weight >= 0, value, -value)
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]:
        norm.affine, norm.weight, norm.bias = False, None, None  # type: ignore[assignment]


class Subnet(Defense[ConfigT]):
    """Base class of the two methods: Algorithm 5.1. Comments give the line numbers of the pseudo-code."""

    def build(self, model: nn.Module) -> nn.Module:
        config = self.config
        if not isinstance(linear_layers(model)[-1], nn.Linear):
            raise UserError("a robust subnetwork needs a model whose last layer is linear; use another --model")
        budgets = adaptive_budgets(weight_counts(model), 1 - config.r, config.gamma)
        fix_weights(model, config.init, config.r)
        start: Start = config.score_range if config.score_start == "range" else "fan-in"
        mask_layers(model, budgets, start, config.rank)
        return model

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        return [mask.scores for mask in masks(model)]

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, x_adv = self.config, batch.x
        if config.adversary == "attack":
            x_adv = ascend(  # lines 4 to 9
                trainer.model, batch.x, batch.y, threat=trainer.threat, steps=config.steps,
                alpha=in_units(config.alpha, trainer.eps), start=self.start(batch, trainer), mode=config.attack_mode,
                step=config.step,
            )  # fmt: skip
            self.store(batch, trainer, x_adv)
        trainer.update(cross_entropy(trainer.model(x_adv), batch.y))  # lines 11 and 12

    def start(self, batch: Batch, trainer: Trainer) -> Tensor:
        """The starting points of the attack, (B,C,H,W): uniform in the ball."""
        return trainer.threat.random_start(batch.x, trainer.generator)

    def store(self, batch: Batch, trainer: Trainer, x_adv: Tensor) -> None:
        """Hook that is called with the result of the attack."""


@registry.defense("binary-subnet")
class BinarySubnet(Subnet[Config]):
    """A robust subnetwork of a random binary network: training selects weights and changes none.

    Thesis, Algorithm 5.1 (edge pop-up with PGD), adaptive pruning (Eq. 5.11), binary initialisation and last batch norm
    (5.1.3). The weights of all linear and convolutional layers are the signs of the architecture's default
    initialisation. Biases, which are zero in the text, are removed. Weights are ranked by their score, as in the text;
    the released code ranks by its absolute value (`rank=magnitude`), and attacks with batch norm in train mode
    (`attack_mode=train`). The attack steps along the gradient's sign (Linf) or the normalised gradient (L2), as PGD
    does; the pseudo-code steps along the gradient itself (`step=raw`). The thesis' ablations: `init=kaiming` with
    `score_start=fan-in` (Table 5.4), `last_norm=false` (Table 5.3), `adversary=none` (Table 5.5). In the signed Kaiming
    constant, r is the pruning rate of the whole network, as printed, even where layers keep other shares.

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 5 seeds, 360 test images):
    clean 98.1 +- 0.6, certified 0.0 +- 0.0, attacked 44.4 +- 0.7.
    """

    config_class = Config


@registry.defense("binary-subnet-fast")
class BinarySubnetFast(Subnet[FastConfig]):
    """binary-subnet with ATTA instead of PGD: one-step attacks that start from the last epoch's perturbation.

    Thesis, section 5.1.4 (FGSM with ATTA).

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 5 seeds, 360 test images):
    clean 98.3 +- 0.2, certified 0.0 +- 0.0, attacked 39.7 +- 2.4.
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


@registry.defense("rst")
class RobustScratchTicket(Subnet[TicketConfig]):
    """RST: edge pop-up with PGD in a network of random constants, each layer pruned at the same rate.

    Fu et al. (2021), "Drawing Robust Scratch Tickets". Here it is Algorithm 5.1 of the thesis with the settings of edge
    pop-up: the signed Kaiming constant, scores from U[-sqrt(1/l), sqrt(1/l)] that are ranked by their absolute value,
    gamma 1, no last batch norm (the thesis adds one in Tables 5.7 to 5.10: `last_norm=true`). The paper's learning rate
    schedule is not known here; this uses the cosine of binary-subnet.

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 1 seed, 360 test images): clean
    97.8, certified 0.0, attacked 42.2.
    """

    config_class = TicketConfig
