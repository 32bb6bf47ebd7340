"""Learning rates as functions of the training's progress, and points in time that a short training does not have."""

import math
from collections.abc import Iterator, Mapping, Sequence

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


def times_of(config: TrainingConfig) -> dict[str, tuple[float, ...]]:
    """The points in time at which the learning rate changes, by setting."""
    by_schedule = {"piecewise": ("milestones", config.milestones), "triangular": ("peak", (config.peak,))}
    return dict([by_schedule[config.schedule]]) if config.schedule in by_schedule else {}


def lost_times(times: Mapping[str, Sequence[float]], steps: int) -> Iterator[str]:
    """Warnings of points in time, as fractions of a training of so many steps, that have no effect of their own.

    A point takes effect at the first step at or after it. It is lost if there is no such step, or if the next point of
    the same setting takes effect at the same step. 0 and 1 stand for never and always.
    """
    for name, fractions in times.items():
        points = sorted({fraction for fraction in fractions if 0 < fraction < 1})
        starts = [_first_step(point, steps) for point in points]
        ends = [*starts, steps][1:]
        lost = [point for point, start, end in zip(points, starts, ends, strict=True) if start >= end]
        if lost:
            which = ", ".join(f"{point:.3g}" for point in lost)
            yield f"{name}: what begins after {which} of the training has no step in a training of {steps} steps"


def _first_step(fraction: float, steps: int) -> int:
    """The number of the first step whose progress, step / steps, is at least `fraction`; `steps` if there is none."""
    near = math.floor(fraction * steps)
    return next((step for step in range(max(0, near - 1), steps) if step / steps >= fraction), steps)
