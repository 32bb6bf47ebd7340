"""IAT: instance-adaptive adversarial training (Balaji et al., 2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.ascent import is_misclassified
from attacks.inner_attacks import pgd_from_random_start
from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer, mode_of
from bench.core.rules import fraction_of_training, positive
from bench.core.specs import Length, OfEps, in_units


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    epochs: int = 200
    milestones: tuple[float, ...] = (0.5, 0.75)
    steps: int = 10  # steps of the attacks
    alpha: Length = OfEps(0.25)  # step size of the attacks, in units of the example's own eps
    change: Length = OfEps(1.9 / 8)  # gamma: change of an example's eps in one step; 1.9/255 at eps 8/255
    rate: float = 0.1  # weight of the new eps in the moving average
    warm_up: float = 10 / 200  # fraction of the training in which every example has the eps of the threat model

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            change=positive(self.change),
            rate=(0 < self.rate <= 1, "in (0, 1]"),
            warm_up=fraction_of_training(self.warm_up),
            eps_growth=(self.eps_growth == "none", "none, because each example has an eps of its own"),
        )


@registry.defense("iat")
class IAT(Defense[Config]):
    """IAT: PGD adversarial training with an eps for each example, larger if the model resists it, smaller if not.

    Balaji et al. (2019), Algorithms 1 and 2. The model is attacked at eps_i + gamma and at eps_i; the new eps_i is the
    larger of the two that it resists, or eps_i - gamma if it resists neither, averaged with the old one. An attack at
    eps_i - gamma would not change this and is left out. Then the model is trained on an attack with eps_i. An eps is
    never negative.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 5 seeds, 360 test images): clean 97.7 +- 0.4, certified
    0.0 +- 0.0, attacked 58.7 +- 2.8.
    """

    config_class = Config
    supported_settings = ("awp", "label_smoothing")

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"warm_up": (self.config.warm_up,)}

    def prepare(self, trainer: Trainer) -> None:
        trainer.bank["eps"] = torch.full((trainer.examples,), trainer.eps, device=trainer.generator.device)

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        eps = batch.read(trainer.bank["eps"])
        if trainer.progress >= self.config.warm_up:
            eps = self.adapted(eps, batch, trainer)
            batch.write(trainer.bank["eps"], eps)
        x_adv = self.attacked(eps, batch, trainer)
        trainer.update(lambda: self.cross_entropy(trainer.model(x_adv), batch.y))

    def adapted(self, eps: Tensor, batch: Batch, trainer: Trainer) -> Tensor:
        """Algorithm 2: the next eps (B,) of each example."""
        change = in_units(self.config.change, trainer.eps)
        chosen = eps - change
        for larger in (eps, eps + change):
            x_adv = self.attacked(larger, batch, trainer)
            with mode_of(trainer.model, training=False), torch.no_grad():
                chosen = torch.where(is_misclassified(trainer.model(x_adv), batch.y), chosen, larger)
        return ((1 - self.config.rate) * eps + self.config.rate * chosen).clamp(min=0)

    def attacked(self, eps: Tensor, batch: Batch, trainer: Trainer) -> Tensor:
        """PGD from a uniform start, with one eps for each example."""
        return pgd_from_random_start(
            trainer.model, batch.x, batch.y, threat=replace(trainer.threat, eps=eps), steps=self.config.steps,
            alpha=self.config.alpha, generator=trainer.generator,
        )  # fmt: skip
