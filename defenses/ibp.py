"""Training through interval bounds (Gowal et al., 2018)."""

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.contracts import Batch, Trainer
from bench.training.ramps import RampConfig, RampedDefense
from certifiers.worst_logits import interval_worst_logits


@dataclass(frozen=True, kw_only=True)
class Config(RampConfig):
    milestones: tuple[float, ...] = (15 / 60, 25 / 60)
    kappa: float = 0.5  # the final weight of the clean loss; it falls from 1 as eps rises
    warm_up: float = 2 / 60  # fraction of the training on clean images only
    ramp: float = 10 / 60  # fraction of the training, after the warm-up, in which eps rises and kappa falls from 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(kappa=(0 <= self.kappa <= 1, "in [0, 1]"))


@registry.defense("ibp")
class IBP(RampedDefense[Config]):
    """IBP: cross entropy of the worst-case logits under interval bounds, mixed with that of the clean images.

    Gowal et al. (2018): kappa l(z) + (1 - kappa) l(z_worst), with the last layer merged into the worst-case logits. The
    defaults are the paper's for MNIST (60,000 steps). Zhang et al. (2020) use warm_up=0.01, ramp=0.6, growth=smooth and
    learning rates that halve at 0.7, 0.8 and 0.9, as do the suites of the thesis' Table 3.5; there the CNN bounds
    subsample=20 images of a batch (10 on CIFAR-10). Batch norm is in eval mode in the bounds.

    Deviation: training uses the eps of the run, while the paper trains with a larger eps than it tests with. In the
    published results eps and kappa changed once per epoch; now they change with each step.

    Evidence: digits (small-cnn, Linf 0.2, 200 epochs, 3 seeds, 360 test images): clean 88.0 +- 1.5, certified
    51.4 +- 3.8, attacked 51.6 +- 4.1.
    """

    config_class = Config

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        loss, threat = cross_entropy(trainer.model(batch.x), batch.y), self.ramped(trainer)
        if threat is not None:
            rows = slice(self.config.subsample)  # the batch is already shuffled
            kappa = 1 - (1 - self.config.kappa) * self.position(trainer.progress)
            worst = interval_worst_logits(trainer.model, batch.x[rows], batch.y[rows], threat)
            loss = kappa * loss + (1 - kappa) * cross_entropy(worst, batch.y[rows])
        trainer.update(loss)
