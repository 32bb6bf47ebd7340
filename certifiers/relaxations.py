"""Linear relaxations: two lines that enclose an activation wherever its input is in [low, high]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RelaxationKind = Literal["parallel", "adaptive", "tight", "crown"]


@dataclass(frozen=True)
class LinearRelaxation:
    """lower_slope x + lower_bias <= phi(x) <= upper_slope x + upper_bias for x in [low, high].

    Tensors in the shape of the interval, differentiable in its ends. Parallel lines share one slope tensor. lower_bias
    None: the lower line passes through (0, 0). multiplier: one number per unit, for lower bounds where the sign of the
    unit's input is known: -beta if x >= 0 and beta if x <= 0, for any beta >= 0 (beta-CROWN). A lower bound may add the
    term `multiplier * x`, which is <= 0.
    """

    lower_slope: Tensor
    lower_bias: Tensor | None
    upper_slope: Tensor
    upper_bias: Tensor
    multiplier: Tensor | None = None

    @property
    def parallel(self) -> bool:
        return self.lower_slope is self.upper_slope

    def of(self, rows: Tensor) -> LinearRelaxation:
        """The relaxation of some of the examples."""
        lower_bias = None if self.lower_bias is None else self.lower_bias[rows]
        upper_slope = self.upper_slope[rows]
        lower_slope = upper_slope if self.parallel else self.lower_slope[rows]
        multiplier = None if self.multiplier is None else self.multiplier[rows]
        return LinearRelaxation(lower_slope, lower_bias, upper_slope, self.upper_bias[rows], multiplier)

    def enclosure(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The minimum of the lower line and the maximum of the upper line over [low, high]."""
        least = torch.minimum(self.lower_slope * low, self.lower_slope * high)
        most = torch.maximum(self.upper_slope * low, self.upper_slope * high) + self.upper_bias
        return least if self.lower_bias is None else least + self.lower_bias, most

    @property
    def gap(self) -> Tensor:
        """upper_bias - lower_bias."""
        return self.upper_bias if self.lower_bias is None else self.upper_bias - self.lower_bias


Relaxations = Mapping[int, LinearRelaxation]  # by activation node
