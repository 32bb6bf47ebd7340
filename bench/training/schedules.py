"""Learning rates and eps as functions of the progress, and warnings for trainings that are too short for them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from bench.core.config import TrainingConfig
from bench.core.specs import in_units

REACHED = 0.99  # of eps, at the last step of a training whose eps grows
SMALLEST = 1e-6  # of eps: a schedule from 0 begins here, because the eps of a threat model is positive


def in_period(config: TrainingConfig, progress: float) -> float:
    """The progress within the current period of the config."""
    ends = [0.0, *config.periods, 1.0]
    start = max(end for end in ends[:-1] if end <= progress)
    return (progress - start) / (ends[ends.index(start) + 1] - start)


def eps_at(config: TrainingConfig, eps: float, progress: float) -> float:
    """The eps to train with after a share `progress` of the steps, for the `eps` of the threat model.

    Thesis, Eq. 4.29, clipped to [0, eps], with d / D as the progress in the period, step by step.
    """
    if config.eps_growth == "none":
        return eps
    low, high = (in_units(length, eps) for length in (config.eps_min, config.eps_max))
    share = in_period(config, progress)
    if config.eps_growth == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return float(min(max((high - low) * share + low, SMALLEST * eps), eps))


def unreached_eps(config: TrainingConfig, eps: float, steps: int) -> Iterator[str]:
    """Warn if eps grows and the last of this many steps does not reach that of the threat model."""
    share = eps_at(config, eps, (steps - 1) / steps) / eps
    if share < REACHED:
        yield f"eps_growth: the last of {steps} steps has {share:.0%} of eps; with eps_max=2eps, it is reached half-way"


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """The learning rate after a share `progress` in [0, 1) of the steps."""
    within = in_period(config, progress)
    rising = min(1.0, within / config.lr_warm_up) if config.lr_warm_up else 1.0
    return rising * _scheduled(config, progress)


def drops(config: TrainingConfig, progress: float) -> int:
    """How often a piecewise learning rate has dropped in the current period; 0 with another schedule."""
    within = in_period(config, progress)
    return sum(within >= m for m in config.milestones) if config.schedule == "piecewise" else 0


def _scheduled(config: TrainingConfig, progress: float) -> float:
    within = in_period(config, progress)
    match config.schedule:
        case "piecewise":
            return config.lr * config.decay ** drops(config, progress)
        case "triangular":
            before = within < config.peak
            return config.lr * (within / config.peak if before else (1 - within) / (1 - config.peak))
        case "cosine":
            return config.lr * (1 + math.cos(math.pi * within)) / 2
        case "constant":
            return config.lr


def times_of(config: TrainingConfig) -> dict[str, tuple[float, ...]]:
    """The points in time at which the learning rate or a modifier changes, by setting."""
    ends = [0.0, *config.periods, 1.0]
    times = {"periods": config.periods, "awp_start": (config.awp_start,), "lr_warm_up": (config.lr_warm_up,)}
    by_schedule = {"piecewise": ("milestones", config.milestones), "triangular": ("peak", (config.peak,))}
    if config.schedule in by_schedule:
        name, points = by_schedule[config.schedule]
        times[name] = tuple(a + (b - a) * point for a, b in pairwise(ends) for point in points)
    return times


def times_without_effect(times: Mapping[str, Sequence[float]], steps: int) -> Iterator[str]:
    """Warn about points in time (fractions of the training) that have no effect in a training of this many steps.

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
            yield f"{name}: {which} has no effect, because the training has only {steps} steps"


def _first_step(fraction: float, steps: int) -> int:
    """The first step whose progress, step / steps, is at least `fraction`; `steps` if there is none."""
    near = math.floor(fraction * steps)
    return next((step for step in range(max(0, near - 1), steps) if step / steps >= fraction), steps)
