"""Weight averages that are evaluated instead of the last weights: exponential (ema), or at the ends of epochs (swa)."""

import math
from collections.abc import Iterator

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.core.config import TrainingConfig

LARGEST_SHARE = 0.1  # share of the initial weights in an exponential average above which there is a warning


class WeightAverage:
    """A copy of the model with averaged weights and buffers.

    `model` is None if no average is configured, or before the first average of swa.

    Izmailov et al. (2018) for `swa`. Batch norm's statistics are averaged too, instead of being estimated again.
    """

    def __init__(self, config: TrainingConfig, model: nn.Module) -> None:
        self.config = config
        average = get_ema_multi_avg_fn(config.ema) if config.ema else None
        self.copy = AveragedModel(model, multi_avg_fn=average, use_buffers=True) if config.ema or config.swa else None

    @property
    def model(self) -> nn.Module | None:
        if self.copy is None or (self.config.swa and not self.copy.n_averaged):
            return None
        return self.copy.module

    def after_step(self, model: nn.Module) -> None:
        if self.copy is not None and self.config.ema:
            self.copy.update_parameters(model)

    def after_epoch(self, model: nn.Module, progress: float) -> None:
        """progress: of the training, at the end of the epoch."""
        if self.copy is not None and self.config.swa and progress > self.config.swa:
            self.copy.update_parameters(model)


def short_averages(config: TrainingConfig, steps: int, epochs: int) -> Iterator[str]:
    """Warn about averages for which a training of this many steps and epochs is too short."""
    share = config.ema ** max(0, steps - 1)
    if config.ema and share > LARGEST_SHARE:
        enough = LARGEST_SHARE ** (1 / (steps - 1))
        yield (
            f"ema: after {steps} steps, {share:.0%} of the average are the weights after the first one; "
            f"choose an ema of at most {math.floor(1e6 * enough) / 1e6:g}"
        )
    members = sum(end / epochs > config.swa for end in range(1, epochs + 1))
    if config.swa and members < 2:
        yield f"swa: only the last of {epochs} epochs is averaged; choose a smaller swa"
