"""Losses between those of adversarial training and of interval bounds (De Palma et al., 2024)."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from attacks.inner_attacks import pgd_from_random_start
from bench.core import registry
from bench.core.contracts import Trainer
from bench.core.threat import ThreatModel
from bench.training.interval_methods import IntervalConfig, IntervalMethod
from certifiers.worst_logits import interval_worst_logits

SMALLEST = 1e-12  # lower limit of a loss, because the logarithm of 0 is not finite


@dataclass(frozen=True, kw_only=True)
class Config(IntervalConfig):
    share: float = 0.1  # alpha: 0 is adversarial training, 1 is IBP; to be tuned
    l1: float = 1e-5  # weight of the sum of the absolute weights

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(share=(0 <= self.share <= 1, "in [0, 1]"))


class Expressive(IntervalMethod[Config]):
    """Base class: a step on a mixture of two losses at the same images, weighted by `share`."""

    config_class = Config

    @abstractmethod
    def mixture(self, attacked: Tensor, worst: Tensor, y: Tensor) -> Tensor:
        """The loss, given logits of attacked images relative to the label's, and their upper bounds, (B,K) each."""

    def loss(self, x: Tensor, y: Tensor, threat: ThreatModel, trainer: Trainer) -> Tensor:
        config, model = self.config, trainer.model
        x_adv = pgd_from_random_start(
            model, x, y, threat=threat, steps=config.steps, alpha=config.step_size, generator=trainer.generator
        )
        logits, worst = model(x_adv), interval_worst_logits(model, x, y, threat)
        return self.mixture(logits - logits.gather(1, y[:, None]), worst, y)


@registry.defense("cc-ibp")
class CCIBP(Expressive):
    """CC-IBP: cross entropy of a convex combination of attacked logits and worst-case logits under interval bounds.

    De Palma, Bunel, Dvijotham, Kumar, Stanforth and Lomuscio (2024), Eq. 6. The initial weights are those of Shi et al.
    (2021), without their regularisers of the warm-up. The paper tunes alpha for each data set and eps. Batch norm is in
    eval mode in the bounds and in the attack. Deviations from the authors' settings: eps rises linearly, there along a
    smooth curve; the attack is PGD with 8 steps of eps/2 from a uniform start, there 1 step of 10 eps for MNIST and 8
    of eps/4 for CIFAR-10 at 2/255; the eps of the training is that of the threat model, there up to twice as large for
    MNIST.

    Evidence: digits (small-cnn, Linf 0.2, 200 epochs, 1 seed, 360 test images): clean 96.4, certified 67.2, attacked
    67.2.
    """

    def mixture(self, attacked: Tensor, worst: Tensor, y: Tensor) -> Tensor:
        return cross_entropy((1 - self.config.share) * attacked + self.config.share * worst, y)


@registry.defense("mtl-ibp")
class MTLIBP(Expressive):
    """MTL-IBP: a convex combination of the losses of attacked logits and of worst-case logits under interval bounds.

    De Palma et al. (2024), Eq. 7. Otherwise as CC-IBP.

    Evidence: digits (small-cnn, Linf 0.2, 200 epochs, 3 seeds, 360 test images): clean 95.4 +- 0.4, certified
    69.2 +- 1.8, attacked 69.4 +- 2.0.
    """

    def mixture(self, attacked: Tensor, worst: Tensor, y: Tensor) -> Tensor:
        return (1 - self.config.share) * cross_entropy(attacked, y) + self.config.share * cross_entropy(worst, y)


@registry.defense("exp-ibp")
class ExpIBP(Expressive):
    """Exp-IBP: a geometric mean of the losses of attacked logits and of worst-case logits under interval bounds.

    De Palma et al. (2024), Eq. 8: for each example, the loss at the attacked image to the power 1 - alpha times the
    loss of the worst-case logits to the power alpha; the authors' code does this with the batch means of both losses.
    Otherwise as CC-IBP.

    Evidence: not yet reproduced.
    """

    def mixture(self, attacked: Tensor, worst: Tensor, y: Tensor) -> Tensor:
        losses = (cross_entropy(logits, y, reduction="none") for logits in (attacked, worst))
        low, high = (loss.clamp(min=SMALLEST).log() for loss in losses)
        return ((1 - self.config.share) * low + self.config.share * high).exp().mean()
