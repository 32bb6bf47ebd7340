"""Square Attack (Andriushchenko et al., 2020): a random search that changes square windows of the image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import margin
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import TOLERANCE, Norm, ThreatModel

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of p, after so many of 10,000 queries
TILES = 5  # to a side, of the first perturbation under L2 and L1
ROUNDING = 2**-25  # of a pixel in float32, at most
TINY = 1e-12


@registry.attack("square")
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack: random search on the margin, without gradients, by changes of one square window at a time.

    Andriushchenko et al. (2020), Algorithm 1 with Algorithm 2 (Linf) or 3 (L2); the L1 form is AutoAttack's (Croce and
    Hein, 2021). queries: passes per example and restart, the clean image's included. p_init: the share of the image
    that the first windows cover; it shrinks on the published schedule, scaled to `queries`. Broken examples leave.
    Deviations: signs that would change nothing are turned; a window is cut to the image, which may so have any size.
    """

    norms = ("Linf", "L2", "L1")

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise UserError(f"p_init is {self.p_init}; it must be a share of the image, above 0 and at most 1")

    @torch.no_grad()
    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        x_adv, robust = batch.x.clone(), margin(model(batch.x), batch.y) >= 0
        for _ in range(self.restarts):
            rows = robust.nonzero().squeeze(1)
            y, best = batch.y[rows], torch.full(rows.shape, torch.inf, device=rows.device)
            search = SEARCHES[self.threat.norm](self.threat.of(rows), batch.x[rows], generator)
            for query in range(1, self.queries):  # the clean image's was the first
                if len(rows) == 0:
                    break
                points = search.start() if query == 1 else search.change(self._share(query))
                with on_rows(rows):
                    found = margin(model(points.view(-1, *batch.x.shape[1:])), y)
                better = (~(found >= best)).nonzero().squeeze(1)  # NaN too: the evaluator shall find it
                search.point[better] = points[better]
                best = torch.minimum(best, found)
                broken = ~(best >= 0)
                if broken.any() or query == self.queries - 1:
                    x_adv[rows] = search.point.view(-1, *batch.x.shape[1:])
                    robust[rows[broken]] = False
                    rows, y, best = rows[~broken], y[~broken], best[~broken]
                    search.narrow(~broken)
        return x_adv

    def _share(self, query: int) -> float:
        """p, the share of the image that a window covers."""
        return self.p_init / 2 ** bisect_left(HALVINGS, 10_000 * query // self.queries)


class Search(ABC):
    """The best point so far of each image x (b,C,H,W), and how it may change. All points are (b, C*H*W)."""

    def __init__(self, threat: ThreatModel, x: Tensor, generator: torch.Generator) -> None:
        self.threat, self.shape, self.generator = threat, tuple(x.shape[1:]), generator
        self.x = x.flatten(1)
        self.point = self.x.clone()

    @abstractmethod
    def start(self) -> Tensor:
        """The first points."""

    @abstractmethod
    def change(self, share: float) -> Tensor:
        """New points: the best ones with a window of `share` of the image changed, each at a random place."""

    def narrow(self, going: Tensor) -> None:
        """Go on with some of the images alone: going (b,) bool."""
        self.x, self.point, self.threat = self.x[going], self.point[going], self.threat.of(going)

    def window(self, share: float) -> Tensor:
        """The pixels of a square at a random place in each image, channel by channel: indices (b, C*h*w)."""
        _, height, width = self.shape
        h, w = self.size(share)
        top, left = self.draw(height - h + 1, 1), self.draw(width - w + 1, 1)
        return top * width + left + _corner(self.shape, h, w, self.x.device)

    def size(self, share: float) -> tuple[int, int]:
        """Height and width of a square of `share` of the image, cut to the image."""
        _, height, width = self.shape
        side = self.side(share * height * width)
        return min(side, height), min(side, width)

    def side(self, pixels: float) -> int:
        return max(round(math.sqrt(pixels)), 1)

    def draw(self, below: int, *size: int) -> Tensor:
        """Random integers from 0 to below - 1, (b, *size)."""
        return torch.randint(below, (len(self.x), *size), generator=self.generator, device=self.x.device)


class SignSearch(Search):
    """Linf, Algorithm 2: each pixel is at one end of its interval, and a window goes to one end, channel by channel."""

    def __init__(self, threat: ThreatModel, x: Tensor, generator: torch.Generator) -> None:
        super().__init__(threat, x, generator)
        ends = [threat.project(torch.full_like(self.x, end), self.x) for end in (-torch.inf, torch.inf)]
        self.ends = torch.cat(ends, dim=1)  # (b, 2*C*H*W)

    def start(self) -> Tensor:
        """Vertical stripes."""
        channels, height, width = self.shape
        up = self.draw(2, channels, 1, width).expand(-1, -1, height, -1).flatten(1)
        return self.end(torch.arange(up.shape[1], device=up.device), up)

    def change(self, share: float) -> Tensor:
        window, channels = self.window(share), self.shape[0]
        up = self.draw(2, channels, 1).expand(-1, -1, window.shape[1] // channels).flatten(1)
        unchanged = (self.end(window, up) == self.point.gather(1, window)).all(dim=1, keepdim=True)
        return self.point.scatter(1, window, self.end(window, up ^ unchanged))

    def end(self, window: Tensor, up: Tensor) -> Tensor:
        """The values of the pixels of a window at the upper ends, or the lower ones; up (b, C*h*w) is 1 or 0."""
        return self.ends.gather(1, window + self.x.shape[1] * up)

    def narrow(self, going: Tensor) -> None:
        super().narrow(going)
        self.ends = self.ends[going]


class MassSearch(Search):
    """L2, Algorithm 3: a window takes over the mass of another one and its share of what is unused.

    Mass is what adds up over pixels: squares under L2, absolute values under L1. The box leaves some of it unused.
    """

    order, power, gain = 2, 2, 1  # of the norm; of a bump's steepness; of a changed window

    def start(self) -> Tensor:
        """Tiles, each of two bumps."""
        channels, height, width = self.shape
        tile = max(min(height, width) // TILES, 1)
        down, across = height // tile, width // tile
        tiles = self.signs(channels, down, 1, across, 1) * self.bumps(tile, tile)[0].view(tile, 1, tile)
        tiles = tiles.reshape(-1, channels, down * tile, across * tile)
        right, bottom = width - across * tile, height - down * tile
        delta = functional.pad(tiles, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)).flatten(1)
        return self.clamp(self.x + self.unit(delta) * self.root(self.budget()))

    def change(self, share: float) -> Tensor:
        to, source, channels = self.window(share), self.window(share), self.shape[0]
        x_to, x_source = self.x.gather(1, to), self.x.gather(1, source)
        taken = (self.point.gather(1, to) - x_to).unflatten(1, (channels, -1))
        point = self.point.scatter(1, to, x_to)
        moved = (point.gather(1, source) - x_source).unflatten(1, (channels, -1))  # the windows may overlap
        point.scatter_(1, source, x_source)
        mass = self.mass(taken) + self.mass(moved)
        unused = (self.budget() - self.mass(point - self.x) - mass.sum(dim=1)).clamp(min=0)
        bumps = self.unit(self.bumps(*self.size(share)))[self.draw(2)]
        form = self.unit(self.signs(channels, 1) * bumps[:, None] + self.unit(taken))
        delta = self.gain * form * self.root(mass + unused[:, None] / channels)
        return point.scatter_(1, to, self.clamp(x_to + delta.flatten(1)))

    def side(self, pixels: float) -> int:
        return max(super().side(pixels), 3) | 1  # odd

    def signs(self, *size: int) -> Tensor:
        return 2 * self.draw(2, *size) - 1

    def bumps(self, h: int, w: int) -> Tensor:
        """Eq. 2: one bump up and one down, beside each other and above each other, (2, h*w)."""
        return _bumps(h, w, self.power, self.x.device)

    def budget(self) -> Tensor:
        """The mass of a perturbation as large as eps allows, less what rounding may add."""
        rounding = ROUNDING * self.x.shape[1] ** (1 / self.order)
        eps = self.threat.eps_like(self.x) * (1 - TOLERANCE) - rounding
        return eps.clamp(min=0).pow(self.order).to(self.x.dtype)

    def mass(self, delta: Tensor) -> Tensor:
        """The mass of the last axis, which stays."""
        return delta.abs().pow(self.order).sum(dim=-1, keepdim=True)

    def root(self, mass: Tensor) -> Tensor:
        """The norm of what has this mass."""
        return mass.pow(1 / self.order)

    def unit(self, delta: Tensor) -> Tensor:
        return delta / self.root(self.mass(delta)).clamp(min=TINY)

    def clamp(self, point: Tensor) -> Tensor:
        return point if self.threat.box is None else point.clamp(*self.threat.box)


class SparseSearch(MassSearch):
    """L1: Algorithm 3 with steeper bumps, and all pixels shrink after each change, which keeps perturbations sparse.

    A changed window is scaled up threefold, so that there is something to shrink, and mass moves between channels.
    AutoAttack scales it by the number of channels, so that on images of one channel nothing would shrink.
    """

    order, power, gain = 1, 4, 3

    def change(self, share: float) -> Tensor:
        return self.x + soft_threshold(super().change(share) - self.x, self.budget())


SEARCHES: dict[Norm, type[Search]] = {"Linf": SignSearch, "L2": MassSearch, "L1": SparseSearch}


def soft_threshold(delta: Tensor, eps: Tensor) -> Tensor:
    """The nearest point to delta (b,m) with an L1 norm of at most eps: sign(delta) max(|delta| - t, 0).

    The norm is convex in t, so Newton's method from t = 0 only ever steps forward, and ends on the exact t.
    """
    size, t = delta.abs(), torch.zeros_like(delta[:, :1])
    while True:
        above = (size > t).to(size.dtype)
        excess = torch.linalg.vecdot(size, above)[:, None] - eps
        further = excess / above.sum(dim=1, keepdim=True).clamp(min=1)
        if not (further > t).any():
            return delta.sign() * (size - t).clamp(min=0)
        t = torch.maximum(t, further)


@cache
def _corner(shape: tuple[int, ...], h: int, w: int, device: torch.device) -> Tensor:
    """The pixels of the h x w window in the top left corner of an image (C,H,W): indices (C*h*w,)."""
    return torch.arange(math.prod(shape), device=device).view(shape)[:, :h, :w].flatten()


@cache
def _bumps(h: int, w: int, power: int, device: torch.device) -> Tensor:
    beside = torch.cat([_bump(h, w // 2, power), -_bump(h, w - w // 2, power)], dim=1)
    above = torch.cat([_bump(h // 2, w, power), -_bump(h - h // 2, w, power)], dim=0)
    return torch.stack([beside, above]).flatten(1).to(device)


def _bump(h: int, w: int, power: int) -> Tensor:
    """Rectangles on top of each other (h,w), the smaller the higher."""
    n = max(h, w) // 2
    away = torch.maximum((torch.arange(h) - h // 2).abs()[:, None], (torch.arange(w) - w // 2).abs())
    return (1 / (n + 1 - torch.arange(n + 1)) ** power).cumsum(dim=0)[n - away]
