"""The sizes, results and figures of `bench study lazy-regime`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.studies.claims import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEORY = {"step size": -1.0, "gradient norm": 0.5, "perturbation / |x|": -0.5}  # exponents of d in Theorem 3.1
BUDGETS = (0.25, 0.5, 1.0, 2.0, 4.0)  # delta sqrt(d) in figure 4, left
RADII = (1.0, 2.0, 4.0, 8.0, 16.0)  # V sqrt(m) in figure 4, right


class Variant(NamedTuple):
    """One curve of figures 2, 3, 5 and 6."""

    inputs: str  # raw (with a bias) or normalised (without)
    width: int
    c0: float

    @property
    def name(self) -> str:
        return f"{self.inputs}, m = {self.width}, C0 = {self.c0:g}"


@dataclass(frozen=True)
class Plan:
    """The sizes of an experiment. Our copy of the paper lacks the numbers of widths, C0, epochs and seeds."""

    sides: tuple[int, ...] = (5, 10, 20)
    widths: tuple[int, ...] = (300, 1000)
    c0s: tuple[float, ...] = (2.0, 10.0)
    main: tuple[int, float] = (1000, 10.0)  # width and C0 of the other figures
    seeds: int = 5
    train: int = 2000
    test: int = 200
    epochs: int = 2
    at_sides: tuple[int, ...] = (5, 10, 20)
    at_widths: tuple[int, ...] = (100, 300, 1000)
    at_width: int = 300
    at_side: int = 10
    at_train: int = 500
    at_epochs: int = 8
    at_steps: tuple[int, int] = (5, 15)  # of PGD in training and in the test
    at_seeds: int = 3

    @property
    def dims(self) -> list[int]:
        return [side**2 for side in self.sides]

    def variants(self) -> list[Variant]:
        """Each width at the main C0 and each C0 at the main width, raw and normalised."""
        pairs = dict.fromkeys([(m, self.main[1]) for m in self.widths] + [(self.main[0], c0) for c0 in self.c0s])
        return [Variant(inputs, *pair) for inputs in ("raw", "normalised") for pair in pairs]


@dataclass
class Curve:
    """The results of a variant's networks. mean: by quantity, (seeds, dims), over the test points.

    error: on the test points, (seeds, dims). points: by quantity, of each test point, (seeds, dims, points).
    """

    mean: dict[str, Floats]
    error: Floats
    points: dict[str, Floats]

    @property
    def size(self) -> Floats:
        """perturbation / |x|."""
        return self.points["perturbation / |x|"]

    @classmethod
    def empty(cls, plan: Plan) -> Curve:
        shape = (plan.seeds, len(plan.sides))
        points = {name: np.empty((*shape, plan.test)) for name in THEORY}
        return cls({name: np.empty(shape) for name in THEORY}, np.empty(shape), points)


@dataclass
class Grid:
    """Robust accuracy in figure 4, (seeds, rows, columns)."""

    rows: Sequence[int]
    columns: Sequence[float]
    accuracy: Floats

    @classmethod
    def empty(cls, seeds: int, rows: Sequence[int], columns: Sequence[float]) -> Grid:
        return cls(rows, columns, np.empty((seeds, len(rows), len(columns))))

    def passes(self) -> Floats:
        """Where each seed's accuracy first passes 50 %, (seeds, rows)."""
        return np.array([[where_it_passes_half(row, self.columns) for row in each] for each in self.accuracy])


def where_it_passes_half(values: Floats, at: Sequence[float]) -> float:
    """Where a sequence first passes 0.5, interpolated in the logarithm of `at`; NaN if it does not."""
    above, log = values - 0.5, np.log(at)
    for k in range(len(values) - 1):
        if above[k] * above[k + 1] < 0:
            return math.exp(log[k] + above[k] / (above[k] - above[k + 1]) * (log[k + 1] - log[k]))
    return math.nan


SMALL = Plan()
PAPER = Plan(
    sides=(5, 7, 10, 14, 20, 28), widths=(1000, 2000, 4000), c0s=(5.0, 10.0, 20.0), seeds=10, train=12_665, test=500,
    at_sides=(5, 10, 14, 20, 28), at_widths=(100, 300, 1000), at_side=14, at_steps=(100, 100), at_seeds=10,
)  # fmt: skip


def draw(canvas: Figure, *, plan: Plan, curves: dict[Variant, Curve], left: Grid, right: Grid) -> None:
    dims = np.array(plan.dims)
    for panel, (name, power) in enumerate(THEORY.items(), start=1):
        for row, title in enumerate(("widths (figures 2, 5)", "C0 (figures 3, 6)")):
            axes = canvas.add_subplot(3, 3, 3 * row + panel)
            for variant, curve in curves.items():
                if (variant.c0 == plan.main[1]) if row == 0 else (variant.width == plan.main[0]):
                    axes.plot(dims, curve.mean[name].mean(axis=0), label=variant.name)
            theory = axes.plot(dims, dims.astype(float) ** power, "k-", linewidth=0.8, label=f"theory: d^{power:g}")
            axes.set(xscale="log", yscale="log", xlabel="d", ylabel=name, title=f"MNIST 0/1, {title}")
            axes.set_xticks(dims, [str(d) for d in dims])
            axes.set_xticks([], minor=True)
            axes.legend(handles=None if panel == 1 else theory, fontsize="x-small")
    axes = canvas.add_subplot(3, 3, 7)
    for line, (name, power) in zip(("-", "--", ":"), THEORY.items(), strict=True):
        scaled = curves[Variant("normalised", *plan.main)].points[name][:, -1].ravel() / dims[-1] ** power
        label = f"{name} / d^{power:g}"
        axes.hist(scaled[np.isfinite(scaled)], bins=60, range=(0, 4), histtype="step", linestyle=line, label=label)
    axes.set(
        title=f"One step that flips (figure 7), d = {dims[-1]}", xlabel="in units of the theory", ylabel="test points"
    )
    axes.legend(fontsize="x-small")
    for panel, grid, name, column in ((8, left, "d", "delta sqrt(d)"), (9, right, "m", "V sqrt(m)")):
        heat_map(canvas.add_subplot(3, 3, panel), grid, name, column)


def heat_map(axes: Axes, grid: Grid, row: str, column: str) -> None:
    mean = grid.accuracy.mean(axis=0)
    axes.imshow(mean, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
    for i, j in np.ndindex(*mean.shape):
        colour = "white" if mean[i, j] < 0.6 else "black"
        axes.text(j, i, f"{100 * mean[i, j]:.0f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(grid.columns)), [f"{c:g}" for c in grid.columns])
    axes.set_yticks(range(len(grid.rows)), [str(name) for name in grid.rows])
    axes.set(title="Robust acc., %, PGD-L2 (figure 4)", xlabel=column, ylabel=row)
