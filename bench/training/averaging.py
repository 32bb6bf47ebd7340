"""The average of the weights that is evaluated in their place: exponential (ema), or of the ends of epochs (swa)."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.core.config import TrainingConfig


class WeightAverage:
    """A copy of the model with averaged weights and buffers; None as `model` while there is none.

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
