"""Lower bounds of linear functions of a network, by linear relaxation and backward substitution (CROWN).

Let c v be one term of a linear function, v_i = phi(z_i) the output of a rectifier with l_i <= z_i <= u_i. Where l_i < 0
< u_i, phi lies between a line through the origin, alpha_i z, and the chord, s_i z + t_i: below the chord if it is
convex (leak <= 1), above it otherwise. So c_i v_i is at least c_i times one of the two, and the sum is at least
c' z + const with c'_i = c_i alpha_i or c_i s_i. Elsewhere phi is one of its two pieces, exactly. Then z = A v + b, and
the next variables are those of A (leaderboard/recheck/affine.py).

A split z_i >= 0 or z_i <= 0 with a multiplier beta >= 0 adds -beta z_i or +beta z_i, which is at most 0 where the split
holds: the bound holds there. The split unit is replaced by the piece on its side of zero, also exactly.

Error. alpha, s and t are numbers of float64 that bound phi exactly: any alpha between 1 and the leak does, and for the
s that is computed, t is taken so large (small) that the line is above (below) phi at l and u, hence between them. What
remains is rounding in c', const and c' A. Each of them is a sum of products, computed up to e = Affine.error times the
sum of their absolute values, and multiplies values that the region bounds, |z| <= magnitude (and |v_j| <= Z_j, of which
magnitude is made). As |c'| <= |c| steepest + beta, with steepest = max(1, |leak|), the error of c' and const, and that
of c' A and c' b, are each at most

    e (<|c|, steepest * magnitude + |t|> + sum of beta * magnitude)

and twice this is subtracted. Contributions to the coefficients of one variable are added up; e counts the additions.
So no computed bound exceeds the exact one, whatever the slopes and multipliers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core.proof_format import TIE
from leaderboard.recheck.affine import UNIT, Affine
from leaderboard.recheck.layers import Vector
from leaderboard.recheck.network import Network, Rectifier
from leaderboard.recheck.regions import Region

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Relaxation:
    """Relaxation of a rectifier, per unit: bounds of z, the slope and bias of the chord; unstable where l < 0 < u."""

    low: Vector
    high: Vector
    slope: Vector
    bias: Vector
    leak: Vector

    @classmethod
    def within(cls, low: Vector, high: Vector, rectifier: Rectifier) -> Relaxation:
        leak, steepest = rectifier.leak, rectifier.steepest
        unstable = (low < 0) & (high > 0)
        l, u = np.where(unstable, low, -1), np.where(unstable, high, 1)  # noqa: E741 -- as in the text above
        s = (u - leak * l) / (u - l)
        ends = u - s * u, leak * l - s * l
        room = 8 * UNIT * (u - l) * (1 + np.abs(s) + steepest)
        t = np.where(leak <= 1, np.maximum(*ends) + room, np.minimum(*ends) - room)
        exact = np.where(low >= 0, 1, leak)
        return cls(low, high, np.where(unstable, s, exact), np.where(unstable, t, 0), leak)

    @property
    def unstable(self) -> Flags:
        flags: Flags = (self.low < 0) & (self.high > 0)
        return flags

    def through_origin(self, line: str | npt.NDArray[np.uint8]) -> Vector:
        """The slopes alpha of the lines through the origin by a rule, or by numbers q: leak + (1 - leak) q / 255."""
        if isinstance(line, str):
            steep = self.high > -self.low * (1 + TIE)
            chosen = np.where(steep, 1, self.leak) if line == "adaptive" else self.slope
        else:
            chosen = self.leak + (1 - self.leak) * (line / 255)
        alpha = np.clip(chosen, np.minimum(self.leak, 1), np.maximum(self.leak, 1))
        return np.where(self.unstable, alpha, self.slope)


@dataclass(frozen=True)
class Splits:
    """Splits of one rectifier: in column `columns`, unit `units` is on the side `signs`, with a multiplier."""

    units: Indices
    columns: Indices
    signs: Vector
    multipliers: Vector


@dataclass
class Forms:
    """T linear functions: sum over variables of <coefficients[j][:, t], v_j>, plus constant[t], less error[t]."""

    coefficients: dict[int, Vector]
    constant: Vector
    error: Vector

    @classmethod
    def of_rows(cls, affine: Affine, magnitude: Vector, weights: Sequence[tuple[Indices, float]]) -> Forms:
        """Sums of rows of z, each with a weight: column t is the sum over (rows, w) of w z[rows[t]]."""
        count = len(weights[0][0])
        coefficients = {j: np.zeros((term.matrix.shape[1], count)) for j, term in affine.terms.items()}
        constant, error = np.zeros(count), np.zeros(count)
        for rows, weight in weights:
            for j, term in affine.terms.items():
                coefficients[j] += weight * term.rows(rows)
            constant += weight * affine.bias[rows]
            error += abs(weight) * affine.error * magnitude[rows]
        return cls(coefficients, constant, error)

    def beside(self, other: Forms) -> Forms:
        coefficients = {j: np.hstack([each, other.coefficients[j]]) for j, each in self.coefficients.items()}
        both = [np.hstack(pair) for pair in ((self.constant, other.constant), (self.error, other.error))]
        return Forms(coefficients, *both)


def minimum(
    network: Network,
    region: Region,
    forms: Forms,
    relaxations: Sequence[Relaxation],
    slopes: Sequence[Vector],
    magnitudes: Sequence[Vector],
    splits: Sequence[Splits | None] | None = None,
) -> Vector:
    """Return a lower bound of each of T forms over the region, (T,). This modifies the forms.

    relaxations, slopes (units, T or 1) of the lines through the origin, splits: one per rectifier. magnitudes: a bound
    of |z| for each variable from 1 on.
    """
    pending, constant, error = forms.coefficients, forms.constant, forms.error
    for j in range(max(pending, default=0), 0, -1):
        coefficients = pending.pop(j, None)
        if coefficients is None:
            continue
        variable, magnitude = network.variables[j - 1], magnitudes[j - 1]
        if isinstance(variable, Rectifier):
            k = variable.position
            split = None if splits is None else splits[k]
            coefficients, below, lost = _relaxed(coefficients, variable, relaxations[k], slopes[k], split, magnitude)
            constant, error = constant + below, error + lost
        else:
            error = error + 2 * variable.z.error * (magnitude @ np.abs(coefficients))
        constant = constant + variable.z.bias @ coefficients
        for i, term in variable.z.terms.items():
            product = term.transposed @ coefficients
            pending[i] = pending[i] + product if i in pending else product
    return constant - error + (region.minimum(pending[0]) if 0 in pending else 0)


def _relaxed(
    c: Vector, rectifier: Rectifier, relaxation: Relaxation, alpha: Vector, split: Splits | None, magnitude: Vector
) -> tuple[Vector, Vector, Vector]:
    """c', const and the error for coefficients c (units, T) of a rectifier's output."""
    slope, bias, error = relaxation.slope[:, None], relaxation.bias, 2 * rectifier.z.error
    lost = error * ((rectifier.steepest * magnitude + np.abs(bias)) @ np.abs(c))
    pieces = None
    if split is not None:
        at = split.units, split.columns
        piece = np.where(split.signs > 0, 1, rectifier.leak[split.units])
        pieces = c[at] * piece - split.signs * split.multipliers
        np.add.at(lost, split.columns, error * split.multipliers * magnitude[split.units])
        c[at] = 0
    negative = np.minimum(c, 0)
    positive = c - negative
    convex = rectifier.leak <= 1
    if convex.all():
        relaxed, below = positive * alpha + negative * slope, bias @ negative
    else:
        lower, upper = np.where(convex[:, None], alpha, slope), np.where(convex[:, None], slope, alpha)
        relaxed = positive * lower + negative * upper
        below = np.where(convex, bias, 0) @ negative + np.where(convex, 0, bias) @ positive
    if split is not None:
        relaxed[at] = pieces
    return relaxed, below, lost
