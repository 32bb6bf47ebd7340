"""How many weights pruning keeps in each layer."""

import math
from collections.abc import Mapping, Sequence

from bench.core.errors import UserError


def adaptive_budgets(sizes: Sequence[int], keep_share: float, gamma: float) -> list[int]:
    """The number of weights to keep in each layer, given the layers' `sizes` (thesis Eq. 5.11, made exact).

    The budgets add up to round(keep_share * sum(sizes)) and are proportional to size^gamma: gamma = 1 keeps the same
    share of each layer, gamma = 0 the same number. No layer keeps more than it has (its excess goes to the larger
    layers) or less than one weight.
    """
    total = _total(sizes, keep_share)
    wanted: dict[int, float] = {}
    left = float(total)
    powers = {i: size**gamma for i, size in enumerate(sizes)}
    for i in sorted(powers, key=lambda i: sizes[i]):
        rest = sum(powers[j] for j in powers if j not in wanted)
        wanted[i] = min(float(sizes[i]), left * powers[i] / rest)
        left -= wanted[i]
    return _rounded(wanted, sizes, total)


def quota_budgets(sizes: Sequence[int], keep_share: float) -> list[int]:
    """Budgets n / (f n + 1) for layers of n weights, with the force f that makes them add up (ideal gas quotas).

    Tang et al. (2021), in the released code of FlyingBird. Large layers keep about the same number 1 / f, small ones a
    large share.
    """
    total = _total(sizes, keep_share)
    low, high = 0.0, 1e12
    for _ in range(200):  # bisection: the sum falls with f
        force = (low + high) / 2
        if sum(n / (force * n + 1) for n in sizes) > total:
            low = force
        else:
            high = force
    return _rounded({i: n / (high * n + 1) for i, n in enumerate(sizes)}, sizes, total)


def _total(sizes: Sequence[int], keep_share: float) -> int:
    total = round(keep_share * sum(sizes))
    if not len(sizes) <= total <= sum(sizes):
        raise UserError(f"keeping {total} of {sum(sizes)} weights in {len(sizes)} layers is not possible; change r")
    return total


def _rounded(wanted: Mapping[int, float], sizes: Sequence[int], total: int) -> list[int]:
    """Round to integers from 1 to a layer's size that add up to `total`, as close as possible to the wanted budgets."""
    budgets = [max(1, math.floor(wanted[i])) for i in range(len(sizes))]
    # correct the rounding, one weight at a time, in the layer whose budget is furthest off
    while sum(budgets) < total:
        budgets[max((i for i in wanted if budgets[i] < sizes[i]), key=lambda i: wanted[i] - budgets[i])] += 1
    while sum(budgets) > total:
        budgets[max((i for i in wanted if budgets[i] > 1), key=lambda i: budgets[i] - wanted[i])] -= 1
    return budgets
