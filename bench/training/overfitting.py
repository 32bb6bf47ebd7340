"""Catastrophic overfitting: a model trained with one-step attacks suddenly resists only these."""

from collections.abc import Sequence

COLLAPSE = 0.5  # as a fraction of the best PGD accuracy so far
LEAST_BEST = 0.2  # a model whose best PGD accuracy is lower was never robust


def has_collapsed(history: Sequence[tuple[float, float]]) -> bool:
    """Whether the last of (one-step accuracy, PGD accuracy) pairs, one per probe, shows catastrophic overfitting.

    This is the case if the PGD accuracy is below half of its best value, and the one-step accuracy is at least what
    it was at that best value (the symptom that Wong et al., 2020, describe).
    """
    if len(history) < 2:
        return False
    best_one_step, best_pgd = max(history[:-1], key=lambda pair: pair[1])
    one_step, pgd = history[-1]
    return best_pgd >= LEAST_BEST and pgd < COLLAPSE * best_pgd and one_step >= best_one_step
