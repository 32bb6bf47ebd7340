"""Learning rates as functions of the training's progress."""

import math

from bench.core.config import TrainingConfig


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """The learning rate after a share `progress` in [0, 1) of the steps."""
    match config.schedule:
        case "piecewise":
            return config.lr * config.decay ** sum(progress >= m for m in config.milestones)
        case "triangular":
            rising = progress < config.peak
            return config.lr * (progress / config.peak if rising else (1 - progress) / (1 - config.peak))
        case "cosine":
            return config.lr * (1 + math.cos(math.pi * progress)) / 2
        case "constant":
            return config.lr
