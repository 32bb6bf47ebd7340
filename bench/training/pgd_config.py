"""The settings of a training that attacks each batch by PGD."""

from dataclasses import dataclass

from bench.core.config import TrainingConfig
from bench.core.specs import Length, OfEps


@dataclass(frozen=True, kw_only=True)
class PGDConfig(TrainingConfig):
    """The usual attack for CIFAR-10: 10 steps of 2/255 at eps 8/255."""

    steps: int = 10  # steps of the attack
    alpha: Length = OfEps(0.25)  # step size of the attack
