"""Training without an adversary: a baseline that attacks must break."""

from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer


@registry.defense("standard")
class Standard(Defense[TrainingConfig]):
    """Standard training: cross entropy on clean images, no adversary.

    Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 3 seeds, 360 test images): clean 97.1 +- 0.3, certified
    0.0 +- 0.0, attacked 0.1 +- 0.2.
    """

    config_class = TrainingConfig
    supported_settings = ("awp", "label_smoothing", "cutmix", "extra")
    norms = ("Linf", "L2", "L1")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        trainer.update(lambda: self.cross_entropy(trainer.model(batch.x), batch.target))
