"""Which unit to split next: filtered smart branching (de Palma et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from certifiers.linear_forms import LinearForms
from certifiers.local_relaxation import LocalRelaxation, Solution

ROWS = 64  # problems at a time
NONE = -1


def choose_units(
    local: LocalRelaxation, forms: LinearForms, solution: Solution, signs: Tensor, *, candidates: int, enough: float
) -> Tensor:
    """Choose the unit to split in each of n problems, as an index (n,) of its parameters; NONE if all are split.

    Two scores filter the units: the amount by which the upper line lowers the bound at an input of zero (only for
    negative coefficients), and the same with the coefficient's absolute value. For the best `candidates` of each score,
    both children are bounded with the parent's parameters. The unit with the best bound of the worse child is chosen.
    """
    if signs.shape[1] == 0:
        return torch.full((len(signs),), NONE, device=signs.device)
    free = 1 - signs.abs()
    gap = local.high * -local.low * (1 - local.leak) / (local.high - local.low)
    scores = (
        (-solution.coefficients).clamp(min=0) * gap * free,
        solution.coefficients.abs() * gap * free,
    )
    n, count = len(signs), min(candidates, signs.shape[1])
    units = torch.cat([(score - (1 - free)).topk(count, dim=1).indices for score in scores], dim=1)
    tried = units.flatten()
    rows = torch.arange(n, device=tried.device).repeat_interleave(2 * count)
    worse = torch.full_like(rows, torch.inf, dtype=solution.value.dtype)
    both = torch.zeros_like(worse)
    for sign in (1.0, -1.0):
        for part in torch.arange(len(rows), device=rows.device).split(ROWS):
            chosen, row = tried[part, None], rows[part]
            parameters = solution.parameters[row].scatter(1, chosen, 0.0)
            split = signs[row].scatter(1, chosen, sign)
            each = forms.with_coefficients(forms.coefficients[row])
            value = local.bound(local.network.output, each, parameters, split).clamp(max=enough)
            worse[part] = torch.minimum(worse[part], value)
            both[part] += value
    score = (worse + 0.1 * both).view(units.shape)  # the sum breaks ties
    score = score.masked_fill(free.gather(1, units) == 0, -torch.inf)
    best = units.gather(1, score.argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(free.any(dim=1), best, NONE)
