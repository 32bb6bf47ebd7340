"""Do the perturbations of the highest loss flip the label? A grid search in three dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import softplus

from bench.core import registry
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.studies.figures import new_figure

X = (3.0, 2.0, 1.0)  # of the first class; the model is the identity, so these are its logits
SIDE, RADIUS = 0.51, 0.7078
TOP = (10, 100, 1000)


def losses(logits: Tensor) -> dict[str, Tensor]:
    """The losses (N,) of logits (3,N), of which the first is the right class's.

    They are those of attacks/losses.py and section 2, class by class, which is ten times as fast for three classes.
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
class Top:
    """The highest losses seen so far, in descending order, and which of their perturbations flip the label."""

    loss: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    flips: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def add(self, loss: Tensor, flips: Tensor) -> None:
        loss, flips = torch.cat([self.loss, loss]), torch.cat([self.flips, flips])
        self.loss, kept = loss.topk(min(TOP[-1], len(loss)))
        self.flips = flips[kept]


@registry.study("reflected-grid")
def reflected_grid(*, size: int = 800, figure: str | None = "reflected-grid.png") -> str:
    """How many of the k highest perturbations flip the label: cross entropy against the reflected loss, on a grid.

    reflected-loss.txt, section 4.1 and figure 2: f(x) = x in three dimensions, x = (3, 2, 1) of class 1, perturbations
    in (-0.51, 0.51)^3 of length at most 0.7078, on a grid of `size`^3 points. Section 4.1 does not say what the
    reflected loss of three classes is, nor where the points of the grid lie. Here are three readings: `margin`, the
    l_-(z) = -l(-z) of section 2 at the margin to the best wrong class; `greedy`, the log-likelihood of that class
    (section 4.3); `logits`, minus the cross entropy of -f(x). Points are the centres of `size` cells a side. The paper
    draws its counts and does not print them. Planes of the grid are searched one by one, in memory for one.

    At size 800, 148 of 488 million points flip the label. k = 10, 100, 1000 find 10, 100, 148 of them by `margin`, and
    none by the other three: so only that reading shows what the paper says.
    """
    if size < 2:
        raise UserError(f"size is {size}; it must be at least 2")
    drawn = None if figure is None else new_figure(Path(figure), 9, 4)
    found = search(size)
    counts = {name: [int(top.flips[:k].sum()) for k in TOP] for name, top in found.tops.items()}
    lines = [
        f"{size}^3 points, {found.points:,} of them allowed, {found.flips:,} of which flip the label",
        "label flips among the k perturbations of the highest loss:",
        tabulate([[name, *row] for name, row in counts.items()], ["loss", *(f"k = {k}" for k in TOP)], "github"),
        "the paper (figure 2; no numbers in its text): far more by the reflected loss than by cross entropy",
    ]
    if drawn is not None:
        for panel, k in enumerate(TOP):
            axes = drawn.add_subplot(1, len(TOP), panel + 1)
            axes.bar(list(counts), [row[panel] for row in counts.values()], color=["tab:blue", *["tab:red"] * 3])
            axes.set(title=f"k = {k}", ylim=(0, k), ylabel="label flips" if panel == 0 else "")
            axes.tick_params(axis="x", rotation=90)
        drawn.savefig(str(figure))
        lines.append(f"figure: {figure}")
    return "\n".join(lines)


@dataclass
class Search:
    """The top of each loss, and how many points of the grid are allowed, and how many of these flip the label."""

    tops: dict[str, Top] = field(default_factory=dict)
    points: int = 0
    flips: int = 0


def search(size: int) -> Search:
    """All losses over the whole grid, with no more than a plane of it in memory."""
    found = Search()
    with Progress("reflected-grid", size, "plane") as progress:
        for logits in planes(size):
            flips = logits.argmax(dim=0) != 0
            for name, loss in losses(logits).items():
                found.tops.setdefault(name, Top()).add(loss, flips)
            found.points += len(flips)
            found.flips += int(flips.sum())
            progress.advance(1)
    return found


def planes(size: int) -> Iterator[Tensor]:
    """The logits (3,N) of all allowed points, in float64, one plane of the grid at a time."""
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 * SIDE - SIDE
    second, third = torch.meshgrid(axis, axis, indexing="ij")
    squares = second**2 + third**2
    for first in axis:
        inside = first**2 + squares <= RADIUS**2
        delta = torch.stack([first.expand(int(inside.sum())), second[inside], third[inside]])
        yield delta + torch.tensor(X, dtype=torch.float64)[:, None]
