"""Step sizes that decay, as in section 4.2 of the reflected-loss paper: 10, times 0.2 every 10 steps."""

from collections.abc import Iterator
from typing import Any

from bench.core.errors import UserError


def decaying_steps(steps: int, alpha: Any, decay: float, decay_every: int) -> Iterator[tuple[int, Any]]:
    """Yield (number of steps, step size) for each run of equal step sizes; alpha is a number or a tensor (B,)."""
    if decay == 1:
        yield steps, alpha
        return
    for first in range(0, steps, decay_every):
        yield min(decay_every, steps - first), alpha * decay ** (first // decay_every)


def check_decay(decay: float, decay_every: int) -> None:
    """UserError if the options of a decay are not valid."""
    if decay <= 0 or decay_every < 1:
        raise UserError(
            f"decay is {decay:g} and decay_every {decay_every}; both must be positive (decay=1 keeps the step size)"
        )
