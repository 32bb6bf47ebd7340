"""The set of images that a bound has to hold for: what it does to linear functions of the image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core.threat import TOLERANCE, ThreatModel
from certifiers.layers import Interval
from certifiers.linear_forms import Rows

DUAL = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}


class Region(ABC):
    """A set of images (B,C,H,W) for each of B examples."""

    @abstractmethod
    def interval(self) -> Interval:
        """The smallest box around it: centre and radius, (B,C,H,W) each."""

    @abstractmethod
    def reach(self, rows: Rows) -> Interval:
        """The values that rows of the image take in it, as centre and radius, (B,T) each."""

    @abstractmethod
    def of(self, rows: Tensor) -> Region:
        """The region of some of the examples."""


@dataclass(frozen=True)
class Box(Region):
    """Every pixel in an interval of its own: the Linf ball, cut by the box of images."""

    center: Tensor
    radius: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Box:
        return cls((low + high) / 2, (high - low) / 2)

    @classmethod
    def whole(cls, image: Tensor, box: tuple[float, float]) -> Box:
        """All images of the box, in the shape of one image (1,C,H,W)."""
        return cls.between(torch.full_like(image, box[0]), torch.full_like(image, box[1]))

    def interval(self) -> Interval:
        return self.center, self.radius

    def reach(self, rows: Rows) -> Interval:
        return rows.dot(self.center), rows.magnitude().dot(self.radius)

    def of(self, rows: Tensor) -> Box:
        return Box(self.center[rows], self.radius[rows])


@dataclass(frozen=True)
class Ball(Region):
    """The L2 or L1 ball around x; where images have a box, each bound is the better of the ball's and the box's."""

    x: Tensor
    threat: ThreatModel

    @property
    def eps(self) -> Tensor:
        return self.threat.eps_like(self.x).to(self.x.dtype)

    def interval(self) -> Interval:
        low, high = self.x - self.eps, self.x + self.eps
        if self.threat.box is not None:
            low, high = low.clamp(*self.threat.box), high.clamp(*self.threat.box)
        return (low + high) / 2, (high - low) / 2

    def reach(self, rows: Rows) -> Interval:
        center, radius = rows.dot(self.x), self.eps.flatten()[:, None] * rows.norm(DUAL[self.threat.norm])
        if self.threat.box is None:
            return center, radius
        whole = torch.full_like(self.x[:1], (self.threat.box[0] + self.threat.box[1]) / 2)
        middle, half = rows.dot(whole), rows.magnitude().dot(whole - self.threat.box[0])
        low, high = torch.maximum(center - radius, middle - half), torch.minimum(center + radius, middle + half)
        return (low + high) / 2, (high - low) / 2

    def of(self, rows: Tensor) -> Ball:
        return Ball(self.x[rows], self.threat.of(rows))


def region_of(x: Tensor, threat: ThreatModel) -> Region:
    """All points that the threat model around the images x (B,C,H,W) contains, its tolerance included."""
    threat = ThreatModel(threat.norm, threat.eps * (1 + TOLERANCE), threat.box)
    if threat.norm != "Linf":
        return Ball(x, threat)
    eps = threat.eps_like(x).to(x.dtype)
    low, high = x - eps, x + eps
    if threat.box is not None:
        low, high = low.clamp(*threat.box), high.clamp(*threat.box)
    return Box.between(low, high)
