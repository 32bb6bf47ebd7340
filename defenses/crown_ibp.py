"""Training through linear bounds over interval bounds (Zhang et al., 2020)."""

from dataclasses import dataclass
from typing import Literal

from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.contracts import Batch, Trainer
from bench.training.ramps import RampConfig, RampedDefense
from certifiers.worst_logits import interval_worst_logits, linear_worst_logits


@dataclass(frozen=True, kw_only=True)
class Config(RampConfig):
    milestones: tuple[float, ...] = (0.7, 0.8, 0.9)
    decay: float = 0.5
    warm_up: float = 0.01  # fraction of the training on clean images only
    ramp: float = 0.6  # fraction of the training, after the warm-up, in which eps rises from 0; kappa and beta change
    growth: Literal["linear", "smooth"] = "smooth"
    kappa: float = 0.5  # the final weight of the clean loss; it falls from 1
    beta: float = 0.0  # the final share of the linear bounds in the margins; it falls from 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(kappa=(0 <= self.kappa <= 1, "in [0, 1]"), beta=(0 <= self.beta <= 1, "in [0, 1]"))


@registry.defense("crown-ibp")
class CrownIBP(RampedDefense[Config]):
    """CROWN-IBP: as IBP, but the worst-case logits mix linear bounds (CROWN-IBP) and interval bounds.

    Zhang et al. (2020), Eq. 10 and 11: kappa l(z) + (1 - kappa) l(z_worst), whose margins are beta times those of
    `crown-ibp` plus (1 - beta) times those of `ibp`. kappa and beta follow eps. The defaults are those of the paper's
    code for MNIST, in fractions of the training, but the learning rate and the batch are the thesis' (1e-3, 100). The
    thesis' CNN bounds subsample=20 images of a batch (10 on CIFAR-10). Batch norm is in eval mode in the bounds.

    Deviation: training uses the eps of the run, while the paper trains with a larger eps than it tests with.

    Evidence: digits (small-cnn, Linf 0.2, 200 epochs, 3 seeds, 360 test images): clean 95.4 +- 0.4, certified
    68.8 +- 0.3, attacked 68.9 +- 0.3.
    """

    config_class = Config

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        loss, threat = cross_entropy(trainer.model(batch.x), batch.y), self.ramped(trainer)
        if threat is not None:
            rows, position = slice(self.config.subsample), self.position(trainer.progress)
            x, y = batch.x[rows], batch.y[rows]  # the batch is already shuffled
            kappa, beta = (1 - (1 - end) * position for end in (self.config.kappa, self.config.beta))
            if beta == 0:  # avoids the cost of linear bounds
                worst = interval_worst_logits(trainer.model, x, y, threat)
            else:
                worst = linear_worst_logits(
                    trainer.model, x, y, threat, relaxation="adaptive", intermediate="ibp", interval_share=1 - beta
                )
            loss = kappa * loss + (1 - kappa) * cross_entropy(worst, y)
        trainer.update(loss)
