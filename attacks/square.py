"""Square Attack (Andriushchenko et al., 2020): a random search that changes square windows of the image."""

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

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the queries, of 10,000, after which p is halved
TILES = 5  # per side, of the first perturbation under L2 and L1
ROUNDING = 2**-25  # of a pixel in float32, at most
FLOOR = 1e-12  # of denominators that may be 0


@registry.attack("square")
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack: random search on the margin, without gradients, by changes of one square window at a time.

    Andriushchenko et al. (2020), Algorithm 1 with Algorithm 2 (Linf) or 3 (L2); the L1 form is AutoAttack's (Croce and
    Hein, 2021). The windows shrink on the published schedule, scaled to `queries`. Deviations: signs that would not
    change a window are inverted, and a window is cut to the image, which can have any size. The point of a robust
    example is that of the last restart.
    """

    norms = ("Linf", "L2", "L1")

    queries: int = 5000  # forward passes per example and restart, including the clean image's
    p_init: float = 0.8  # share of the image that the first windows cover
    restarts: int = 1  # starts, each on the examples that are left

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise UserError(f"square: p_init is {self.p_init}, a share of the image; it must be above 0 and at most 1")

    @torch.no_grad()
    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x_adv, robust = batch.x.clone(), margin(model(batch.x), batch.y) >= 0
        for _ in range(self.restarts):
            rows = robust.nonzero().squeeze(1)
            y, lowest = batch.y[rows], torch.full(rows.shape, torch.inf, device=rows.device)
            search = SEARCHES[threat.norm](threat.of(rows), batch.x[rows], generator)
            for query in range(1, self.queries):  # query 0 was the clean image
                if len(rows) == 0:
                    break
                points = search.start() if query == 1 else search.change(self._share(query))
                with on_rows(rows):
                    margins = margin(model(points.view(-1, *batch.x.shape[1:])), y)
                improved = (~(margins >= lowest)).nonzero().squeeze(1)  # also if NaN, so that the evaluator finds it
                search.point[improved] = points[improved]
                lowest = torch.minimum(lowest, margins)
                broken = ~(lowest >= 0)
                if broken.any() or query == self.queries - 1:
                    x_adv[rows] = search.point.view(-1, *batch.x.shape[1:])
                    robust[rows[broken]] = False
                    rows, y, lowest = rows[~broken], y[~broken], lowest[~broken]
                    search.keep(~broken)
        return x_adv

    def _share(self, query: int) -> float:
        """p, the share of the image that a window covers."""
        return self.p_init / 2 ** bisect_left(HALVINGS, 10_000 * query // self.queries)


class SquareSearch(ABC):
    """The best point so far of each image x (b,C,H,W), and random changes of it. All points are (b, C*H*W)."""

    def __init__(self, threat: ThreatModel, x: Tensor, generator: torch.Generator) -> None:
        self.threat, self.shape, self.generator = threat, tuple(x.shape[1:]), generator
        self.x = x.flatten(1)
        self.point = self.x.clone()

    @abstractmethod
    def start(self) -> Tensor:
        """The first points."""

    @abstractmethod
    def change(self, share: float) -> Tensor:
        """The best points, each with a window of `share` of the image at a random place changed."""

    def keep(self, rows: Tensor) -> None:
        """Drop the images that are not in `rows`, (b,) bool."""
        self.x, self.point, self.threat = self.x[rows], self.point[rows], self.threat.of(rows)

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
        """The side of a square of about `pixels`."""
        return max(round(math.sqrt(pixels)), 1)

    def draw(self, below: int, *size: int) -> Tensor:
        """Random integers from 0 to below - 1, (b, *size)."""
        return torch.randint(below, (len(self.x), *size), generator=self.generator, device=self.x.device)


class LinfSearch(SquareSearch):
    """Algorithm 2: each pixel is at an end of its interval; a window is set to one end in each channel."""

    def __init__(self, threat: ThreatModel, x: Tensor, generator: torch.Generator) -> None:
        super().__init__(threat, x, generator)
        ends = [threat.project(torch.full_like(self.x, end), self.x) for end in (-torch.inf, torch.inf)]
        self.ends = torch.cat(ends, dim=1)  # (b, 2*C*H*W)

    def start(self) -> Tensor:
        """Vertical stripes."""
        channels, height, width = self.shape
        upper = self.draw(2, channels, 1, width).expand(-1, -1, height, -1).flatten(1)
        return self.ends_of(torch.arange(upper.shape[1], device=upper.device), upper)

    def change(self, share: float) -> Tensor:
        window, channels = self.window(share), self.shape[0]
        upper = self.draw(2, channels, 1).expand(-1, -1, window.shape[1] // channels).flatten(1)
        unchanged = (self.ends_of(window, upper) == self.point.gather(1, window)).all(dim=1, keepdim=True)
        return self.point.scatter(1, window, self.ends_of(window, upper ^ unchanged))

    def ends_of(self, window: Tensor, upper: Tensor) -> Tensor:
        """The upper or lower ends of the intervals of a window's pixels; upper (b, C*h*w) is 1 or 0."""
        return self.ends.gather(1, window + self.x.shape[1] * upper)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.ends = self.ends[rows]


class L2Search(SquareSearch):
    """Algorithm 3: a window takes over the perturbation of another one, and a share of the unused budget.

    Perturbations are measured by the p-th power of their Lp norm, which adds up over the pixels. The box can leave some
    of the budget unused.
    """

    order, bump_power, gain = 2, 2, 1  # p; the exponent of a bump's terms; a scale for the changed window

    def start(self) -> Tensor:
        """Tiles, each of two bumps."""
        channels, height, width = self.shape
        tile = max(min(height, width) // TILES, 1)
        down, across = height // tile, width // tile
        tiles = self.signs(channels, down, 1, across, 1) * self.bumps(tile, tile)[0].view(tile, 1, tile)
        tiles = tiles.reshape(-1, channels, down * tile, across * tile)
        right, bottom = width - across * tile, height - down * tile
        delta = functional.pad(tiles, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)).flatten(1)
        return self.threat.clamp(self.x + self.unit(delta) * self.root(self.budget()))

    def change(self, share: float) -> Tensor:
        window, source, channels = self.window(share), self.window(share), self.shape[0]
        x_window, x_source = self.x.gather(1, window), self.x.gather(1, source)
        before = (self.point.gather(1, window) - x_window).unflatten(1, (channels, -1))
        point = self.point.scatter(1, window, x_window)
        moved = (point.gather(1, source) - x_source).unflatten(1, (channels, -1))  # the windows may overlap
        point.scatter_(1, source, x_source)
        used = self.norm_power(before) + self.norm_power(moved)
        unused = (self.budget() - self.norm_power(point - self.x) - used.sum(dim=1)).clamp(min=0)
        bumps = self.unit(self.bumps(*self.size(share)))[self.draw(2)]
        pattern = self.unit(self.signs(channels, 1) * bumps[:, None] + self.unit(before))
        delta = self.gain * pattern * self.root(used + unused[:, None] / channels)
        return point.scatter_(1, window, self.threat.clamp(x_window + delta.flatten(1)))

    def side(self, pixels: float) -> int:
        return max(super().side(pixels), 3) | 1  # odd

    def signs(self, *size: int) -> Tensor:
        return 2 * self.draw(2, *size) - 1

    def bumps(self, h: int, w: int) -> Tensor:
        """Eq. 2: a positive and a negative bump, side by side and one above the other, (2, h*w)."""
        return _bumps(h, w, self.bump_power, self.x.device)

    def budget(self) -> Tensor:
        """eps to the power of p, (b, 1), reduced by the rounding error of a perturbation."""
        rounding = ROUNDING * self.x.shape[1] ** (1 / self.order)
        eps = self.threat.eps_like(self.x) * (1 - TOLERANCE) - rounding
        return eps.clamp(min=0).pow(self.order).to(self.x.dtype)

    def norm_power(self, delta: Tensor) -> Tensor:
        """The p-th power of the norm over the last axis, kept as an axis of length 1."""
        return delta.abs().pow(self.order).sum(dim=-1, keepdim=True)

    def root(self, norm_power: Tensor) -> Tensor:
        return norm_power.pow(1 / self.order)

    def unit(self, delta: Tensor) -> Tensor:
        """delta, divided by its norm over the last axis."""
        return delta / self.root(self.norm_power(delta)).clamp(min=FLOOR)


class L1Search(L2Search):
    """Algorithm 3 with steeper bumps; after each change all pixels shrink, which keeps perturbations sparse.

    A changed window is scaled up threefold, to leave something to shrink and to move between channels. AutoAttack
    scales it by the number of channels, so that nothing shrinks in images of one channel.
    """

    order, bump_power, gain = 1, 4, 3

    def change(self, share: float) -> Tensor:
        return self.x + soft_threshold(super().change(share) - self.x, self.budget())


SEARCHES: dict[Norm, type[SquareSearch]] = {"Linf": LinfSearch, "L2": L2Search, "L1": L1Search}


def soft_threshold(delta: Tensor, eps: Tensor) -> Tensor:
    """The nearest point to delta (b,m) with an L1 norm of at most eps (b,1): sign(delta) max(|delta| - t, 0).

    The norm is convex in t. Newton's method from t = 0 therefore never overshoots, and ends on the exact t.
    """
    size, t = delta.abs(), torch.zeros_like(delta[:, :1])
    while True:
        above = (size > t).to(size.dtype)
        excess = torch.linalg.vecdot(size, above)[:, None] - eps
        next_t = excess / above.sum(dim=1, keepdim=True).clamp(min=1)
        if not (next_t > t).any():
            return delta.sign() * (size - t).clamp(min=0)
        t = torch.maximum(t, next_t)


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
    """A sum of centred rectangles (h,w); smaller rectangles are higher."""
    n = max(h, w) // 2
    distance = torch.maximum((torch.arange(h) - h // 2).abs()[:, None], (torch.arange(w) - w // 2).abs())
    return (1 / (n + 1 - torch.arange(n + 1)) ** power).cumsum(dim=0)[n - distance]
