"""The sets of images over which proofs hold, and the minimum of linear functions over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.core.errors import UserError
from bench.core.example_table import Threat
from leaderboard.recheck.affine import UNIT, relative_error
from leaderboard.recheck.layers import Vector

TOLERANCE = 1e-6  # relative excess over eps that ThreatModel.contains allows
TINY = float(np.finfo(np.float64).tiny)
ORDERS = {"L2": 2.0, "L1": 1.0}


@dataclass(frozen=True)
class Region:
    """All images within eps (1 + TOLERANCE) of x (n,), with pixels in [0, 1] if there is a box.

    low, high: the smallest box that contains it, rounded outward.
    """

    norm: str
    eps: float
    x: Vector
    low: Vector
    high: Vector
    box: bool

    @classmethod
    def around(cls, x: Vector, threat: Threat) -> Region:
        if threat.norm not in ("Linf", *ORDERS):
            raise UserError(f"the record's norm {threat.norm} is not one that this checker knows")
        eps = np.nextafter(threat.eps * (1 + TOLERANCE), np.inf)
        low, high = np.nextafter(x - eps, -np.inf), np.nextafter(x + eps, np.inf)
        if threat.box:
            low, high = np.maximum(low, 0), np.minimum(high, 1)
        return cls(threat.norm, float(eps), x, low, high, threat.box)

    @property
    def largest(self) -> Vector:
        """The largest absolute value of each pixel."""
        return np.maximum(self.high, -self.low)

    def minimum(self, forms: Vector) -> Vector:
        """Return a lower bound (T,) of each linear function (n, T) of the image.

        Under L2 and L1, it is the better of the bound over the ball, by the dual norm, and the bound over all images in
        [0, 1]. The error covers n roundings of each sum of absolute values, and those of the norm; `TINY` covers
        products that underflow.
        """
        negative = np.minimum(forms, 0)
        error = relative_error(len(forms) + 8)
        if self.norm == "Linf":
            value = self.low @ (forms - negative) + self.high @ negative
            return value - error * (self.largest @ np.abs(forms)) - TINY
        absolute = np.abs(forms)
        dual = absolute.max(axis=0)
        if self.norm == "L2":  # of the forms divided by their largest entry, whose squares do not underflow
            scale = np.where(dual > 0, dual, 1)
            dual = scale * np.sqrt(np.square(forms / scale).sum(axis=0))
        ball = self.x @ forms - self.eps * dual - error * (np.abs(self.x) @ absolute + self.eps * dual)
        return (np.maximum(ball, (1 + error) * negative.sum(axis=0)) if self.box else ball) - TINY

    def distance(self, point: Vector) -> float:
        """The distance of another image, in the region's norm."""
        difference = np.abs(point - self.x)
        return float(difference.max() if self.norm == "Linf" else np.linalg.norm(difference, ORDERS[self.norm]))

    def contains(self, point: Vector) -> bool:
        """Whether a point is in the region, like ThreatModel.contains, in float64."""
        inside = not self.box or bool(np.all((point >= 0) & (point <= 1)))
        return inside and self.distance(point) <= self.eps * (1 + 4 * UNIT)
