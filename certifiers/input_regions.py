"""Input regions: the sets of images over which bounds hold, and the range of linear forms over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core.threat import DUAL_ORDER, TOLERANCE, ThreatModel
from certifiers.layers import Interval
from certifiers.linear_forms import LinearForms


class Region(ABC):
    """A set of images (B,C,H,W) for each of B examples."""

    @abstractmethod
    def interval(self) -> Interval:
        """The smallest box that contains the region: centre and radius, (B,C,H,W) each."""

    @abstractmethod
    def concretize(self, forms: LinearForms) -> Interval:
        """The range of linear forms of the image over the region: centre and radius, (B,T) each."""

    @abstractmethod
    def minimizer(self, forms: LinearForms) -> Tensor:
        """A point (B,C,H,W) at which one linear form of each example, (B,1), attains the lower end of its range.

        If the lower end is the better of two bounds, the point belongs to that bound and may lie outside the region.
        """

    @abstractmethod
    def of(self, rows: Tensor) -> Region:
        """The regions of some of the examples."""


@dataclass(frozen=True)
class Box(Region):
    """One interval per pixel: the Linf ball, intersected with the range of pixels."""

    center: Tensor
    radius: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Box:
        return cls((low + high) / 2, (high - low) / 2)

    @classmethod
    def around(cls, x: Tensor, threat: ThreatModel) -> Box:
        """All pixels within eps of those of x (B,C,H,W), clamped to the range of pixels."""
        eps = threat.eps_like(x).to(x.dtype)
        return cls.between(threat.clamp(x - eps), threat.clamp(x + eps))

    @classmethod
    def whole(cls, image: Tensor, box: tuple[float, float]) -> Box:
        """All images with pixels in `box`, in the shape of one image (1,C,H,W)."""
        return cls.between(torch.full_like(image, box[0]), torch.full_like(image, box[1]))

    def interval(self) -> Interval:
        return self.center, self.radius

    def concretize(self, forms: LinearForms) -> Interval:
        return forms.dot(self.center), forms.absolute().dot(self.radius)

    def minimizer(self, forms: LinearForms) -> Tensor:
        return self.center - self.radius * forms.dense().coefficients.squeeze(1).sign()

    def of(self, rows: Tensor) -> Box:
        return Box(self.center[rows], self.radius[rows])


@dataclass(frozen=True)
class Ball(Region):
    """The L2 or L1 ball around x. With a pixel range, a bound is the better of those for the ball and the range."""

    x: Tensor
    threat: ThreatModel

    def interval(self) -> Interval:
        return Box.around(self.x, self.threat).interval()

    def concretize(self, forms: LinearForms) -> Interval:
        eps = self.threat.eps_like(self.x).to(self.x.dtype)
        center, radius = forms.dot(self.x), eps.flatten()[:, None] * forms.norm(DUAL_ORDER[self.threat.norm])
        if self.threat.box is None:
            return center, radius
        middle, half = Box.whole(self.x[:1], self.threat.box).concretize(forms)
        low, high = torch.maximum(center - radius, middle - half), torch.minimum(center + radius, middle + half)
        return (low + high) / 2, (high - low) / 2

    def minimizer(self, forms: LinearForms) -> Tensor:
        coefficients = forms.dense().coefficients.squeeze(1)
        point = self.x - self.threat.eps_like(self.x).to(self.x.dtype) * self.threat.steepest(coefficients)
        if self.threat.box is None:
            return point
        other = Box.whole(self.x[:1], self.threat.box).minimizer(forms)
        better = (coefficients * (point - other)).flatten(1).sum(dim=1) >= 0
        return torch.where(better.view(-1, *[1] * (point.dim() - 1)), point, other)

    def of(self, rows: Tensor) -> Ball:
        return Ball(self.x[rows], self.threat.of(rows))


def region_of(x: Tensor, threat: ThreatModel) -> Region:
    """The region around images x (B,C,H,W) that contains every point that threat.contains accepts."""
    threat = ThreatModel(threat.norm, threat.eps * (1 + TOLERANCE), threat.box)
    return Box.around(x, threat) if threat.norm == "Linf" else Ball(x, threat)
