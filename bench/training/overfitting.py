"""Catastrophic overfitting: one-step training that suddenly defends against one step only."""

from __future__ import annotations

from collections.abc import Sequence

COLLAPSE = 0.5  # of the best multi-step accuracy so far
FIRM = 0.2  # a best below this is no robustness that could collapse


def catastrophic(history: Sequence[tuple[float, float]]) -> bool:
    """Whether the last of (one-step accuracy, PGD accuracy) pairs shows the collapse.

    It does where PGD accuracy fell below half of its best while one-step accuracy is no lower than it was then
    (Wong et al., 2020, describe the sign).
    """
    if len(history) < 2:
        return False
    best_one_step, best_pgd = max(history[:-1], key=lambda pair: pair[1])
    one_step, pgd = history[-1]
    return best_pgd >= FIRM and pgd < COLLAPSE * best_pgd and one_step >= best_one_step
