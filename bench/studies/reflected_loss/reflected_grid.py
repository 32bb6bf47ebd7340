"""`bench study reflected-grid`: do perturbations of the highest loss flip the label? A grid search in 3 dimensions."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bench.core import registry
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.studies.figure_style import COLOURS, check_figure, new_figure
from bench.studies.study import Study
from leaderboard.render import render

X = (3.0, 2.0, 1.0)  # of the first class; the model is the identity, so these are its logits
SIDE, RADIUS = 0.51, 0.7078
TOP = (10, 100, 1000)


def losses(logits: Tensor) -> dict[str, Tensor]:
    """The losses (N,) of logits (3,N); row 0 is the true class.

    The same losses as in attacks/losses.py and section 2, but computed class by class, which is ten times as fast here.
    """
    ahead = logits[1:] - logits[0]
    best = ahead.max(dim=0).values
    cross_entropy = ahead.exp().sum(dim=0).log1p()
    return {
        "cross entropy": cross_entropy,
        "reflected: margin": -softplus(-best),
        "reflected: greedy": best - cross_entropy,
        "reflected: logits": -(-ahead).exp().sum(dim=0).log1p(),
    }


@dataclass
class HighestLosses:
    """The highest losses so far, in descending order, and which of their perturbations flip the label."""

    loss: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    flips: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def add(self, loss: Tensor, flips: Tensor) -> None:
        loss, flips = torch.cat([self.loss, loss]), torch.cat([self.flips, flips])
        self.loss, indices = loss.topk(min(TOP[-1], len(loss)))
        self.flips = flips[indices]


@registry.study("reflected-grid")
@dataclass(frozen=True, kw_only=True)
class ReflectedGridStudy(Study):
    """How many of the k perturbations of the highest loss flip the label: cross entropy and the reflected loss.

    reflected-loss.txt, section 4.1 and figure 2: f(x) = x in three dimensions, x = (3, 2, 1) of class 1, perturbations
    in (-0.51, 0.51)^3 of length at most 0.7078, on a grid of `size`^3 points, here the centres of `size` cells per
    side. The paper does not say what the reflected loss of three classes is, so three readings are compared: `margin`,
    l_-(z) = -l(-z) of section 2 at the margin to the best other class; `greedy`, the log-likelihood of that class
    (section 4.3); `logits`, minus the cross entropy of -f(x). The paper plots its counts and does not print them. The
    grid is searched plane by plane, so only one plane is in memory.

    At size 800, 148 of 488 million points flip the label. Among the k = 10, 100, 1000 highest losses by `margin`, 10,
    100 and 148 do, and none by the other three losses: only `margin` agrees with the paper's claim.
    """

    size: int = 800  # points of the grid along a side
    figure: str | None = "reflected-grid.png"  # file of the figure; none: no figure

    def run(self) -> str:
        if self.size < 2:
            raise UserError(f"size is {self.size}; it must be at least 2")
        if self.figure is not None:
            check_figure(self.figure)
        grid = search_grid(self.size)
        counts = {name: [int(highest.flips[:k].sum()) for k in TOP] for name, highest in grid.highest.items()}
        lines = [
            f"{self.size}^3 points, {grid.points:,} of them allowed, {grid.flips:,} of which flip the label",
            "label flips among the k perturbations of the highest loss:",
            render(["loss", *(f"k = {k}" for k in TOP)], [[name, *row] for name, row in counts.items()], align="lrrr"),
            "the paper (figure 2; no numbers in its text): far more by the reflected loss than by cross entropy",
        ]
        if self.figure is not None:
            with new_figure(self.figure, 9, 4) as canvas:
                canvas.suptitle(f"label flips among the k highest losses, f(x) = x, {self.size}^3 points")
                for panel, k in enumerate(TOP):
                    axes = canvas.add_subplot(1, len(TOP), panel + 1)
                    colours = [COLOURS[0], *[COLOURS[1]] * (len(counts) - 1)]
                    axes.bar(list(counts), [row[panel] for row in counts.values()], color=colours)
                    axes.set(title=f"k = {k}", ylim=(0, k), ylabel="label flips" if panel == 0 else "")
                    axes.tick_params(axis="x", rotation=90)
            lines.append(f"figure: {self.figure}")
        return "\n".join(lines)


@dataclass
class GridSearch:
    """The highest values of each loss; the number of allowed points, and of those that flip the label."""

    highest: dict[str, HighestLosses] = field(default_factory=dict)
    points: int = 0
    flips: int = 0


def search_grid(size: int) -> GridSearch:
    """All losses over the whole grid, one plane at a time."""
    result = GridSearch()
    with Progress("reflected-grid", size, "plane") as progress:
        for logits in planes(size):
            flips = logits.argmax(dim=0) != 0
            for name, loss in losses(logits).items():
                result.highest.setdefault(name, HighestLosses()).add(loss, flips)
            result.points += len(flips)
            result.flips += int(flips.sum())
            progress.advance(1)
    return result


def planes(size: int) -> Iterator[Tensor]:
    """The logits (3,N) of all allowed points, float64, one plane of the grid at a time."""
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 * SIDE - SIDE
    second, third = torch.meshgrid(axis, axis, indexing="ij")
    squares = second**2 + third**2
    for first in axis:
        inside = first**2 + squares <= RADIUS**2
        delta = torch.stack([first.expand(int(inside.sum())), second[inside], third[inside]])
        yield delta + torch.tensor(X, dtype=torch.float64)[:, None]
