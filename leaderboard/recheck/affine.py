"""Affine functions of a network's variables, composed from its linear layers, with a bound on their rounding error.

A variable is the image, or the output of a rectifier or of a maximum. Everything between them is linear, so the input z
of each rectifier is an affine function of the earlier variables, z = sum over j of A_j v_j + b.

Error. All numbers are float64 with unit roundoff u = 2^-53, and u_n = n u / (1 - n u) (Higham, Accuracy and Stability
of Numerical Algorithms, section 3.1) bounds the relative error of n roundings one after the other. An entry of A_j is a
sum of products of weights. It is computed with at most `roundings` roundings one after the other, so that it differs
from the exact entry by at most u_roundings times the same sum of absolute values, the entry of S_j. The same holds for
b and its size. Then for |v_j| <= Z_j

    magnitude = sum over j of S_j Z_j + size

bounds |z|, and u_roundings * magnitude bounds the error of z by that of A_j and b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from bench.core.errors import UserError
from leaderboard.recheck.layers import FORMULA, Matrix, Vector

UNIT = 2.0**-53
DENSE = 0.2  # share of nonzero entries above which dense products are faster
MOST_ENTRIES = 3 * 10**8
MOST_VARIABLES = 1000


def relative_error(roundings: int) -> float:
    """Return at least 2 u_n, twice the relative error of n roundings one after the other.

    The result is multiplied by magnitudes that are computed with rounding, too. The factor 2 covers this: they are sums
    of nonnegative numbers, whose relative error is far below 1/2.
    """
    if roundings > 2**40:
        raise UserError("the network is too large for this checker's error bound")
    return 2.001 * roundings * UNIT


@dataclass(frozen=True)
class Term:
    """A_j and S_j, both (units, size of v_j), sparse."""

    matrix: Matrix
    size: Matrix

    def after(self, matrix: Matrix, absolute: Matrix) -> Term:
        """matrix @ A_j."""
        product, size = matrix @ self.matrix, absolute @ self.size
        if size.nnz > MOST_ENTRIES:
            raise UserError("the network is too large for this checker: its layers have too many connections")
        return Term(product, size)

    @cached_property
    def forward(self) -> Matrix:
        """A_j, stored as dense if that is faster, like the matrices below."""
        return _stored(self.matrix)

    @cached_property
    def absolute(self) -> Matrix:
        return _stored(abs(self.matrix))

    @cached_property
    def sizes(self) -> Matrix:
        return _stored(self.size)

    @cached_property
    def transposed(self) -> Matrix:
        return _stored(sparse.csr_array(self.matrix.T))

    def rows(self, rows: npt.NDArray[np.intp]) -> Vector:
        """(size of v_j, rows): some rows of A_j as columns."""
        columns: Vector = np.ascontiguousarray(self.matrix[rows].toarray().T)
        return columns


@dataclass(frozen=True)
class Affine:
    """sum over j of terms[j] v_j + bias. size: of the bias. roundings: see above."""

    terms: Mapping[int, Term]
    bias: Vector
    size: Vector
    roundings: int = 0

    @classmethod
    def of_variable(cls, j: int, units: int) -> Affine:
        identity = sparse.eye_array(units, format="csr")
        return cls({j: Term(identity, identity)}, np.zeros(units), np.zeros(units))

    def after(self, matrix: Matrix, bias: Vector, size: Vector) -> Affine:
        """matrix @ self + bias. Each entry becomes a sum of as many products as a row of `matrix` has entries."""
        absolute = abs(matrix)
        terms = {j: term.after(matrix, absolute) for j, term in self.terms.items()}
        roundings = self.roundings + int(np.diff(matrix.indptr).max(initial=0)) + FORMULA + 2
        return Affine(terms, matrix @ self.bias + bias, absolute @ self.size + size, roundings)

    def plus(self, other: Affine) -> Affine:
        terms = dict(self.terms)
        for j, term in other.terms.items():
            terms[j] = Term(terms[j].matrix + term.matrix, terms[j].size + term.size) if j in terms else term
        roundings = max(self.roundings, other.roundings) + 1
        return Affine(terms, self.bias + other.bias, self.size + other.size, roundings)

    def placed(self, start: int, units: int) -> Affine:
        """Place these rows at start, start + 1, ... of `units` rows; zero elsewhere."""
        rows = np.arange(start, start + len(self.bias))
        place = sparse.csr_array((np.ones(len(rows)), (rows, rows - start)), shape=(units, len(rows)))
        return self.after(place, np.zeros(units), np.zeros(units))

    @cached_property
    def error(self) -> float:
        """The error of products with A_j or its transpose, relative to the magnitude.

        It covers all roundings of A_j, of the sum, and of adding up at most MOST_VARIABLES such products.
        """
        longest = max((max(term.matrix.shape) for term in self.terms.values()), default=0)
        return relative_error(self.roundings + longest + MOST_VARIABLES)

    def value(self, values: Sequence[Vector]) -> Vector:
        """z for variables (size of v_j, N) each: (units, N)."""
        result: Vector = sum((term.forward @ values[j] for j, term in self.terms.items()), self.bias[:, None])
        return result

    def magnitude(self, largest: Sequence[Vector]) -> Vector:
        """The bound on |z| for |v_j| <= largest[j]."""
        result: Vector = sum((term.sizes @ largest[j] for j, term in self.terms.items()), self.size)
        return result


def _stored(matrix: Matrix) -> Matrix:
    return matrix.toarray() if matrix.nnz > DENSE * np.prod(matrix.shape) else sparse.csr_array(matrix)
