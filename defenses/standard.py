"""Training without an adversary: a baseline that attacks must break."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer


@registry.defense("standard")
class Standard(Defense[TrainingConfig]):
    """Standard training: cross entropy on clean images, no adversary.

    Evidence: not yet reproduced.
    """

    config_class = TrainingConfig
    norms = ("Linf", "L2", "L1")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        trainer.update(cross_entropy(trainer.model(batch.x), batch.y))
