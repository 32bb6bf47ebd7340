"""Shared code of certified training: eps rises from zero after a warm-up on clean images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

from bench.core.config import BoundsConfig
from bench.core.contracts import Defense, Trainer
from bench.core.rules import fraction_of_training
from bench.core.threat import ThreatModel

MIDDLE, POWER = 0.25, 4  # smooth growth: it is s^4 in the first quarter, then linear with the same slope


@dataclass(frozen=True, kw_only=True)
class RampConfig(BoundsConfig):
    warm_up: float = 0.0  # fraction of the training on clean images only
    ramp: float = 0.5  # fraction of the training, after the warm-up, in which eps rises from 0
    growth: Literal["linear", "smooth"] = "linear"  # growth of eps; smooth: quartic in the ramp's first quarter
    subsample: int | None = None  # B', the examples whose bounds are computed; None for the whole batch
    omitted_at_default: ClassVar[tuple[str, ...]] = ("growth", "subsample")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            warm_up=fraction_of_training(self.warm_up),
            ramp=(0 < self.ramp <= 1, "a fraction of the training, in (0, 1]"),
            subsample=(self.subsample is None or self.subsample >= 1, "at least 1, or none for the whole batch"),
        )


RampT = TypeVar("RampT", bound=RampConfig)


class RampedDefense(Defense[RampT]):
    """A defense whose eps rises along the ramp of its config, step by step."""

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"warm_up": (self.config.warm_up,), "ramp": (self.config.warm_up + self.config.ramp,)}

    def prepare(self, trainer: Trainer) -> None:
        if self.config.warm_up + self.config.ramp > 1:
            last = self.position(1.0)
            trainer.warn(f"ramp: it ends after the training, at {last:.0%} of eps; choose a smaller warm_up or ramp")

    def position(self, progress: float) -> float:
        """The fraction of eps after a fraction `progress` of the steps: 0 in the warm-up, 1 after the ramp."""
        share = min(1.0, max(0.0, (progress - self.config.warm_up) / self.config.ramp))
        return share if self.config.growth == "linear" else smooth(share)

    def ramped(self, trainer: Trainer) -> ThreatModel | None:
        """The threat model of this step; None in the warm-up, where eps is 0."""
        eps = self.position(trainer.progress) * trainer.eps
        return replace(trainer.threat, eps=eps) if eps > 0 else None


def smooth(share: float) -> float:
    """Growth from 0 to 1 with a continuous slope (Gowal et al., 2018; Zhang et al., 2020, in their code)."""
    factor = 1 / (MIDDLE**POWER + (1 - MIDDLE) * POWER * MIDDLE ** (POWER - 1))
    if share < MIDDLE:
        return factor * share**POWER
    middle = factor * MIDDLE**POWER
    return float(middle + (1 - middle) * (share - MIDDLE) / (1 - MIDDLE))
