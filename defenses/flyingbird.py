"""FlyingBird (Chen et al., 2022): robust training of a sparse network whose connections change during it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from attacks.inner_attacks import pgd_from_random_start
from bench.core import registry
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.rules import not_negative
from bench.training.architecture import latent, linear_layers
from bench.training.budgets import quota_budgets
from bench.training.pgd_config import PGDConfig
from bench.training.pruning import (
    PruningConfig,
    WeightMask,
    clear_pruned,
    highest,
    register_masks,
    set_masks,
    weight_counts,
    weight_mask,
)

LEAST = 0.005  # share of the connections that the last updates replace


@dataclass(frozen=True, kw_only=True)
class Config(PruningConfig, PGDConfig):
    epochs: int = 200
    milestones: tuple[float, ...] = (0.5, 0.75)
    updates: int = 76  # intervals of equal length that the training has; an update of the connections between two
    replaced: float = 0.5  # share of each layer's connections that the first update replaces; it falls as a cosine
    growth: Literal["gradient", "random"] = "gradient"  # random: the default of the released code

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(updates=(self.updates >= 2, "at least 2"), replaced=(0 < self.replaced < 1, "in (0, 1)"))


@dataclass(frozen=True, kw_only=True)
class FlyingBirdPlusConfig(Config):
    validation: float = 0.02
    adapts: float = 0.5  # fraction of the training after which the density changes
    window: int = 4  # number of past epochs whose changes are counted
    threshold: float = 0.5  # share of the changes that must point in one direction
    removed: float = 0.4  # additional pruned connections while the robust gap widens, as a share of the replaced ones
    added: float = 0.05  # additional grown connections while validation gets worse, as a share of the replaced ones

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            adapts=(0 <= self.adapts < 1, "in [0, 1)"),
            window=(self.window >= 1, "at least 1"),
            threshold=(0 < self.threshold <= 1, "in (0, 1]"),
            removed=not_negative(self.removed),
            added=not_negative(self.added),
        )


ConfigT = TypeVar("ConfigT", bound=Config)


class DynamicSparseTraining(Defense[ConfigT]):
    """Base class of the two methods. Per-training state: `mask_updates`, the number of finished updates."""

    divisible = False  # gradients of masked weights are taken inside a pass

    def build(self, model: nn.Module) -> nn.Module:
        layers, budgets = linear_layers(model), quota_budgets(weight_counts(model), 1 - self.config.r)
        register_masks(model, WeightMask)
        set_masks(layers, highest([torch.rand_like(layer.weight) for layer in layers], budgets))
        clear_pruned(layers)
        return model

    def prepare(self, trainer: Trainer) -> None:
        trainer.bank["mask_updates"] = torch.zeros((), device=trainer.generator.device)

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        x_adv = pgd_from_random_start(
            trainer.model, batch.x, batch.y, threat=trainer.threat, steps=self.config.steps, alpha=self.config.alpha,
            generator=trainer.generator,
        )  # fmt: skip
        layers, due = linear_layers(trainer.model), int(trainer.progress * self.config.updates)
        updates = due > int(trainer.bank["mask_updates"])
        with parametrize.cached():  # so that the layers' weights (including masked ones) are those of the pass
            logits = trainer.model(x_adv)
            loss = cross_entropy(logits, batch.y)
            weights = [layer.weight for layer in layers]
            gradients = torch.autograd.grad(loss, weights, retain_graph=True) if updates else ()
            trainer.update(loss)
        self.record_predictions(logits.detach(), batch, trainer)
        if updates:
            trainer.bank["mask_updates"].fill_(due)
            self.rewire(trainer, gradients)

    def after_step(self, trainer: Trainer) -> None:
        clear_pruned(linear_layers(trainer.model))

    @torch.no_grad()
    def rewire(self, trainer: Trainer, gradients: Sequence[Tensor]) -> None:
        """Prune the smallest weights of each layer, and grow where the loss's gradient is largest, or at random."""
        layers = linear_layers(trainer.model)
        share = LEAST + (self.config.replaced - LEAST) * (1 + math.cos(math.pi * trainer.progress)) / 2
        fewer, more = self.density_changes(trainer)
        room = sum(quota_budgets(weight_counts(trainer.model), 1 - self.config.r))
        room -= sum(int(weight_mask(layer).mask.sum()) for layer in layers)
        for layer, gradient in zip(layers, gradients, strict=True):
            mask, strength = weight_mask(layer).mask, latent(layer).abs()
            number = int(mask.sum())
            if number == mask.numel():
                continue
            replaced = math.ceil(share * number)
            pruned = min(number - 1, math.ceil((1 + fewer) * share * number))
            room += pruned
            rank = strength.masked_fill(mask == 0, -1.0)
            (left,) = highest([rank], [number - pruned])
            grown = min(int((1 + more) * replaced), room, mask.numel() - number + pruned)
            room -= grown
            wanted = gradient.abs() if self.config.growth == "gradient" else self.drawn(gradient, trainer)
            (new,) = highest([wanted.masked_fill(left > 0, -1.0)], [grown])
            mask.copy_(left + new)
        clear_pruned(layers)

    def drawn(self, like: Tensor, trainer: Trainer) -> Tensor:
        return torch.rand(like.shape, generator=trainer.generator, device=like.device)

    def density_changes(self, trainer: Trainer) -> tuple[float, float]:
        """The additional pruned and the additional grown connections, as shares of the replaced ones."""
        return 0.0, 0.0

    def record_predictions(self, logits: Tensor, batch: Batch, trainer: Trainer) -> None:
        """Called with the logits at the attacked images of each step."""


@registry.defense("flyingbird")
class FlyingBird(DynamicSparseTraining[Config]):
    """FlyingBird: PGD training of a sparse network that drops small weights and regrows those of large gradients.

    Chen et al. (2022), "Sparsity Winning Twice", with the constants of the released code: layers start with ideal gas
    quotas; an update prunes the smallest weights of each layer and grows as many, among those that were pruned before
    or now, at the largest absolute gradients of the loss. The code's default grows at random (`growth=random`). A grown
    weight starts at 0. Here the 900 and 1,200 iterations between updates are 76 intervals of the training.

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 1 seed, 360 test images): clean
    98.9, certified 0.0, attacked 73.6.
    """

    config_class = Config


@registry.defense("flyingbird-plus")
class FlyingBirdPlus(DynamicSparseTraining[FlyingBirdPlusConfig]):
    """FlyingBird+: FlyingBird that prunes more while the robust gap widens, and grows more while validation gets worse.

    Chen et al. (2022). The gap is robust accuracy on the training batches minus that on the validation split. The
    released code grows when the validation loss rises; here it grows when the robust accuracy falls, because the
    training's log has only that. Deviation: the network never has more weights than r allows, so that it keeps the
    budget; the authors let it grow. Without a validation split and a probe after each epoch (`probe_every=1`), the
    density does not change, and the training has a warning.

    Evidence: digits (small-cnn:width=24:hidden=256:batchnorm=true, Linf 0.2, 60 epochs, 3 seeds, 360 test images):
    clean 99.1 +- 0.2, certified 0.0 +- 0.0, attacked 71.8 +- 1.4.
    """

    config_class = FlyingBirdPlusConfig

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"adapts": (self.config.adapts,)}

    def prepare(self, trainer: Trainer) -> None:
        super().prepare(trainer)
        device = trainer.generator.device
        trainer.bank["robust_of_epoch"] = torch.zeros(trainer.epochs, device=device)
        trainer.bank["robust_and_seen"] = torch.zeros(2, device=device)

    def record_predictions(self, logits: Tensor, batch: Batch, trainer: Trainer) -> None:
        correct = (logits.argmax(dim=1) == batch.y).float()
        trainer.bank["robust_and_seen"] += torch.stack([correct.sum(), torch.ones_like(correct).sum()])

    def end_epoch(self, trainer: Trainer) -> None:
        robust, seen = trainer.bank["robust_and_seen"].tolist()
        trainer.bank["robust_of_epoch"][trainer.epoch] = robust / seen
        trainer.bank["robust_and_seen"].zero_()

    def density_changes(self, trainer: Trainer) -> tuple[float, float]:
        config, log = self.config, trainer.log[-self.config.window - 1 :]
        if trainer.progress < config.adapts or len(log) < 2:
            return 0.0, 0.0
        if not config.validation or not all("pgd" in line for line in log):
            trainer.warn("the density does not change: it needs a validation split and probe_every=1")
            return 0.0, 0.0
        validation = torch.tensor([line["pgd"] for line in log])
        gap = trainer.bank["robust_of_epoch"][[line["epoch"] - 1 for line in log]].cpu() - validation
        widens = (gap.diff() > 0).float().mean() >= config.threshold
        worse = (validation.diff() <= 0).float().mean() >= config.threshold
        return config.removed * bool(widens), config.added * bool(worse)
