"""The figures of `bench study first-order`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.studies.claims import Floats
from bench.studies.first_order.first_order_landscape import Landscape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 60  # of a landscape, along a side


class Circle(NamedTuple):
    """A landscape of two dimensions, its maxima (k, 2) on the circle, and the points (n, 2) of an escape."""

    space: Landscape
    maxima: Tensor
    path: Tensor


def draw(
    canvas: Figure,
    *,
    circles: dict[tuple[float, float], Circle],
    initial: dict[tuple[float, float], Floats],
    trained: dict[tuple[float, float], Floats],
) -> None:
    """Figure 1 in three rows (scales) of three columns (ratios); figures 2 and 3 in a fourth row."""
    top, bottom = np.asarray(canvas.subfigures(2, 1, height_ratios=(3, 1.15)))
    top.suptitle("Figure 1: loss (y - f)^2 over perturbations, random networks, L2; circles: maxima; line: PGD")
    for panel, ((scale, ratio), circle) in enumerate(circles.items(), start=1):
        axes, eps = top.add_subplot(3, 3, panel), circle.space.eps
        axis = torch.linspace(-1, 1, PIXELS, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=2).flatten(0, 1)
        with torch.no_grad():
            level = circle.space.values(eps * grid)
        level[grid.norm(dim=1) > 1] = torch.nan
        axes.imshow(level.reshape(PIXELS, PIXELS), extent=(-1, 1, -1, 1), origin="lower", cmap="cividis")
        axes.plot(*(circle.path / eps).T, color="white", linestyle="-", linewidth=1.5)
        axes.plot(*(circle.maxima / eps).T, color="#D55E00", marker="o", linestyle="none")
        title = f"scale {scale:g}, ratio {ratio:g}, {len(circle.path) - 1} steps"
        axes.set(title=title, xlabel="delta_1 / eps", ylabel="delta_2 / eps", aspect="equal")
    names = list(dict.fromkeys(name for name, _ in initial)), list(dict.fromkeys(name for name, _ in trained))
    panels = [(f"Fig. 2: scale {name:g}", name, initial) for name in names[0]]
    panels += [(f"Fig. 3: {name:g} epochs", name, trained) for name in names[1]]
    for panel, (title, name, paths) in enumerate(panels, start=1):
        axes = bottom.add_subplot(1, len(panels), panel)
        for (other, ratio), progress in paths.items():
            if other == name:
                axes.plot(100 * progress.mean(axis=1), label=f"{ratio:g}")
        axes.set(title=title, xlabel="step of PGD-L2", ylim=(-5, 105))
        if panel == 1:
            axes.set_ylabel("loss, min. to max., %")
            axes.legend(title="ratio", fontsize="x-small")
