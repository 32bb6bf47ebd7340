"""Checks one proof (bench/core/proof_format.py): every margin must be positive over the region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.errors import UserError
from bench.core.example_table import Threat
from bench.core.proof_format import INTERVALS, Leaf, Proof, at, decode, leaves_of, lines_of
from leaderboard.recheck.affine import UNIT, Affine
from leaderboard.recheck.bounds import Forms, Relaxation, Splits, minimum
from leaderboard.recheck.layers import Vector
from leaderboard.recheck.network import Maximum, Network, Rectifier
from leaderboard.recheck.regions import Region

AT_ONCE = 256  # linear functions bounded at once; their coefficients fit in a CPU's cache
Indices = npt.NDArray[np.intp]


class Column(NamedTuple):
    """One leaf for one wrong class: a linear function that must be positive."""

    target: int
    leaf: Leaf


def check_proof(network: Network, data: bytes, x: Vector, label: int, threat: Threat) -> None:
    """UserError with the reason if the bytes do not prove that all images around x (C,H,W) have the class `label`."""
    proof = decode(data)
    if proof.label != label:
        raise UserError(f"it is for class {proof.label}, and the image has the label {label}")
    if len(proof.bounds) != len(network.rectifiers):
        raise UserError(f"it has bounds of {len(proof.bounds)} activations; the network has {len(network.rectifiers)}")
    columns = [Column(target, leaf) for tree in proof.trees for leaf in leaves_of(tree) for target in tree.classes]
    wanted, proven = set(range(network.classes)) - {label}, {target for tree in proof.trees for target in tree.classes}
    if proven != wanted:
        named = ", ".join(map(str, sorted(proven ^ wanted)))
        raise UserError(f"its trees must prove all classes but {label}, no more and no less; not so for {named}")
    derivation = Derivation(network, proof, Region.around(x.ravel(), threat))
    for start in range(0, len(columns), AT_ONCE):
        derivation.check(label, columns[start : start + AT_ONCE])


class Derivation:
    """Derives all bounds of one proof: first those of every variable, in order, then those of margins."""

    def __init__(self, network: Network, proof: Proof, region: Region) -> None:
        self.network, self.proof, self.region = network, proof, region
        self.lines = lines_of(proof)
        self.low, self.high = [region.low], [region.high]  # of each variable
        self.magnitudes: list[Vector] = []  # of z, of each variable from 1 on
        self.relaxations: list[Relaxation] = []  # of each rectifier
        self._alpha: dict[tuple[int, int], Vector] = {}
        for variable in network.variables:
            magnitude = self._magnitude(variable.z)
            self.magnitudes.append(magnitude)
            low, high = self._interval(variable.z, magnitude)
            if isinstance(variable, Maximum):
                self._add_maximum(variable, low, high)
            else:
                self._add_rectifier(variable, *self._tightened(variable, low, high))

    def check(self, label: int, columns: Sequence[Column]) -> None:
        """UserError if the bound of a leaf is not positive."""
        for column, bound in zip(columns, self.bounds_of(label, columns).tolist(), strict=True):
            if not bound > 0:
                where = f" at a leaf below {len(column.leaf.path)} splits" if column.leaf.path else ""
                raise UserError(f"its bound of the margin to class {column.target} is {bound:.3g}{where}, not positive")

    def bounds_of(self, label: int, columns: Sequence[Column]) -> Vector:
        """The lower bound that each leaf gives."""
        output, bounds = self.network.output, np.zeros(len(columns))
        magnitude = self._magnitude(output)
        by_intervals = np.array([column.leaf.slopes == INTERVALS for column in columns])
        for rows in (np.flatnonzero(by_intervals), np.flatnonzero(~by_intervals)):
            if len(rows):
                leaves = [columns[t].leaf for t in rows.tolist()]
                targets = np.array([columns[t].target for t in rows.tolist()])
                labels = np.full_like(targets, label)
                forms = Forms.of_rows(output, magnitude, [(labels, 1.0), (targets, -1.0)])
                whole = leaves[0].slopes == INTERVALS
                bounds[rows] = self._by_intervals(forms, leaves) if whole else self._by_slopes(forms, leaves)
        return bounds

    def _magnitude(self, z: Affine) -> Vector:
        return z.magnitude([np.maximum(high, -low) for low, high in zip(self.low, self.high, strict=True)])

    def _interval(self, z: Affine, magnitude: Vector) -> tuple[Vector, Vector]:
        """Bound z from the bounds of earlier variables, or over the ball if z is a function of the image only."""
        error = 2 * z.error * magnitude
        if self.region.norm != "Linf" and set(z.terms) == {0}:
            rows = z.terms[0].rows(np.arange(len(z.bias)))
            return self.region.minimum(rows) + z.bias - error, -self.region.minimum(-rows) + z.bias + error
        center, radius = z.bias, error
        for j, term in z.terms.items():
            middle, half = self._middle(j)
            center, radius = center + term.forward @ middle, radius + term.absolute @ half
        return center - radius, center + radius

    def _middle(self, j: int) -> tuple[Vector, Vector]:
        """The centre of a variable's interval, and the maximum distance of its values from the centre."""
        low, high = self.low[j], self.high[j]
        return (low + high) / 2, (high - low) / 2 + 4 * UNIT * np.maximum(high, -low)

    def _tightened(self, rectifier: Rectifier, low: Vector, high: Vector) -> tuple[Vector, Vector]:
        """Tighten the intervals of unstable units by the proof's linear bounds."""
        bounds, z = self.proof.bounds[rectifier.position], rectifier.z
        units = np.flatnonzero((low < 0) & (high > 0))
        if not bounds.linear or not len(units) or set(z.terms) <= {0}:  # of the image: equal to the intervals
            return low, high
        low, high = low.copy(), high.copy()
        magnitude = self.magnitudes[-1]
        for start in range(0, len(units), AT_ONCE):
            part = units[start : start + AT_ONCE]
            least, most = [], []
            for below, above in bounds.linear:
                if below == above:
                    lower, upper = (Forms.of_rows(z, magnitude, [(part, sign)]) for sign in (1.0, -1.0))
                    both = self._minimum(lower.beside(upper), [below], rectifier.position)
                    least.append(both[: len(part)])
                    most.append(-both[len(part) :])
                else:
                    for slopes, sign, found in ((below, 1.0, least), (above, -1.0, most)):
                        forms = Forms.of_rows(z, magnitude, [(part, sign)])
                        found.append(sign * self._minimum(forms, [slopes], rectifier.position))
            if bounds.intersect:
                least.append(low[part])
                most.append(high[part])
            low[part], high[part] = np.max(least, axis=0), np.min(most, axis=0)
        self._tighten_units(rectifier, bounds.units, low, high)
        return low, high

    def _tighten_units(
        self, rectifier: Rectifier, entries: Sequence[tuple[int, int, int]], low: Vector, high: Vector
    ) -> None:
        """Tighten, in place, the bounds of units that have their own slopes."""
        for start in range(0, len(entries), AT_ONCE):
            part = np.array(entries[start : start + AT_ONCE])
            units = part[:, 0]
            if units.min() < 0 or units.max() >= len(low):
                raise UserError(f"it has bounds of unit {units.max()} of an activation with {len(low)}")
            for column, sign, side in ((1, 1.0, low), (2, -1.0, high)):
                forms = Forms.of_rows(rectifier.z, self.magnitudes[-1], [(units, sign)])
                bound = sign * self._minimum(forms, part[:, column].tolist(), rectifier.position)
                better = np.maximum if sign > 0 else np.minimum
                side[units] = better(side[units], bound)

    def _add_rectifier(self, rectifier: Rectifier, low: Vector, high: Vector) -> None:
        self.relaxations.append(Relaxation.within(low, high, rectifier))
        ends = np.sort([rectifier.value(low), rectifier.value(high)], axis=0)
        least = np.where((rectifier.leak < 0) & (low < 0) & (high > 0), 0.0, ends[0])
        self.low.append(np.nextafter(least, -np.inf))
        self.high.append(np.nextafter(ends[1], np.inf))

    def _add_maximum(self, variable: Maximum, low: Vector, high: Vector) -> None:
        """Add a maximum; its bounds are those of max(a, b) by intervals, intersected with the bounds of z."""
        a, b = (self._interval(each, self._magnitude(each)) for each in (variable.a, variable.b))
        least, most = (np.where(variable.mask, np.maximum(*ends), ends[1]) for ends in zip(a, b, strict=True))
        self.low.append(np.maximum(low, least))
        self.high.append(np.minimum(high, most))

    def _by_intervals(self, forms: Forms, leaves: Sequence[Leaf]) -> Vector:
        """Minimize the forms with each variable anywhere in its interval."""
        if any(leaf.path for leaf in leaves):
            raise UserError("a leaf below splits has no slopes")
        total, lost = forms.constant, forms.error
        for j, coefficients in forms.coefficients.items():
            if j == 0:
                total = total + self.region.minimum(coefficients)
                continue
            middle, half = self._middle(j)
            absolute = np.abs(coefficients)
            total = total + middle @ coefficients - half @ absolute
            lost = lost + 2 * self.network.output.error * (np.maximum(self.high[j], -self.low[j]) @ absolute)
        return total - lost

    def _by_slopes(self, forms: Forms, leaves: Sequence[Leaf]) -> Vector:
        """Minimize the forms with the slopes, splits and multipliers of each leaf."""
        rectifiers = len(self.network.rectifiers)
        found: list[list[tuple[int, int, int, float]]] = [[] for _ in range(rectifiers)]
        for t, leaf in enumerate(leaves):
            for (k, unit, sign), multiplier in zip(leaf.path, leaf.multipliers.tolist(), strict=True):
                size = len(at(self.relaxations, k, "activation").low)
                if not 0 <= unit < size:
                    raise UserError(f"a tree splits unit {unit} of activation {k}, which has {size}")
                found[k].append((unit, t, sign, multiplier))
        splits = [_splits(each) for each in found]
        return self._minimum(forms, [leaf.slopes for leaf in leaves], rectifiers, splits)

    def _minimum(
        self, forms: Forms, slopes: Sequence[int], rectifiers: int, splits: Sequence[Splits | None] | None = None
    ) -> Vector:
        """Minimize forms of the first `rectifiers`, with an assignment of slopes for each form, or one for all."""
        different, which = np.unique(slopes, return_inverse=True)
        alpha = []
        for k in range(rectifiers):
            lines = np.stack([self._slopes_of(int(index), k) for index in different], axis=1)
            alpha.append(lines if len(different) == 1 else lines[:, which])
        return minimum(self.network, self.region, forms, self.relaxations, alpha, self.magnitudes, splits)

    def _slopes_of(self, index: int, k: int) -> Vector:
        """The slopes of the lines through the origin of rectifier k in assignment `index`."""
        assignment = at(self.proof.slopes, index, "slopes")
        number = at(assignment, k, f"the line of an activation in slopes {index},")
        if (number, k) not in self._alpha:
            line, relaxation = at(self.lines, number, "line"), self.relaxations[k]
            if not isinstance(line, str) and len(line) != len(relaxation.low):
                raise UserError(f"line {number} has {len(line)} slopes; activation {k} has {len(relaxation.low)} units")
            self._alpha[number, k] = relaxation.through_origin(line)
        return self._alpha[number, k]


def _splits(found: Sequence[tuple[int, int, int, float]]) -> Splits | None:
    if not found:
        return None
    units, columns, signs, multipliers = zip(*found, strict=True)
    return Splits(np.array(units), np.array(columns), np.array(signs, dtype=float), np.array(multipliers))
