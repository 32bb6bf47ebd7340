"""`bench study non-uniform`: certified boxes of the largest volume (thesis, section 3.2, tables 3.2 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts import frozen
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.record_files import WEIGHTS
from bench.datasets.split import Split
from bench.runs.plan import Plan
from bench.runs.run import run_seed
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.reproduction.paper_tables import read_paper_table
from bench.studies.study import ModelStudy
from bench.training.rebuild import load_weights
from certifiers.non_uniform import NonUniform
from leaderboard.render import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFENSES = {"vanilla": "standard", "robust": "pgd-at"}
UNITS = 2  # the thesis' images are in [-1, 1], so its eps are twice ours
EPS = 0.1 / UNITS  # of the adversarial training
PAIR = (1, 7)  # the classes of figure 3.5; classes 0 and 1 of a data set that has only two
BATCH = 50
DECIMALS = (1, 4, 4, 3, 4, 4)

Row = tuple[float, ...]  # test accuracy in percent; mean uniform and non-uniform eps; mean and least cosine


@dataclass(frozen=True)
class Boxes:
    """The accuracy of one model, and the test images that have a certified box, with labels and eps of their boxes."""

    accuracy: float
    x: Tensor
    y: Tensor
    eps: Tensor
    uniform: Tensor

    @property
    def average(self) -> float:
        """The mean over images of eps_avg, the geometric mean over pixels."""
        return float(self.eps.log().flatten(1).mean(dim=1).exp().mean())

    def cosines(self) -> Tensor:
        """The cosines between the eps of all pairs of images, (N (N - 1) / 2,)."""
        unit = nn.functional.normalize(self.eps.flatten(1), dim=1)
        rows, columns = torch.triu_indices(len(unit), len(unit), offset=1)
        return (unit @ unit.T)[rows, columns]


@registry.study("non-uniform")
@dataclass(frozen=True, kw_only=True)
class NonUniformStudy(ModelStudy):
    """The largest certified boxes of a vanilla and a robust network, compared with the thesis (tables 3.2 and 3.3).

    The networks have three hidden layers of `hidden` units. They are trained here (`standard` and `pgd-at`, eps 0.05)
    in run folders below `out`, and read from there the next time. eps are printed in the thesis' unit, for images in
    [-1, 1], which is twice ours. The figure shows the eps of all pixels of one image (figure 3.4), and the eps of an
    image of class 1 and one of class 7 as maps. The networks of figure 3.5 separate these two classes only:
    `dataset=mnist:classes=1+7`.
    """

    dataset: str = "mnist"  # name of the data set, or an .npz file
    hidden: int = 100  # units of each hidden layer
    epochs: int = 20  # epochs of both trainings
    n_examples: int = 50  # boxes of the first N test images
    pilot: int = 0  # the first of these images give the mean direction from which the others start; 0: the uniform box
    seed: int = 0  # seed of both trainings
    out: str = "runs"  # folder of the trained networks
    figure: str = "non-uniform.png"  # file of the figure

    def run(self) -> str:
        if self.n_examples < 2:
            raise UserError(f"n_examples is {self.n_examples}; it must be at least 2, for a cosine of two images")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be at least 0")
        if not 0 <= self.pilot < self.n_examples:
            raise UserError(f"pilot is {self.pilot}; it must be at least 0, and less than n_examples")
        check_figure(self.figure)
        model = f"mlp:hidden={self.hidden},{self.hidden},{self.hidden}"
        plans = {  # both are planned before the first training, so that a mistake ends the study at once
            kind: self.plan(
                defense=defense, dataset=self.dataset, model=model, norm="Linf", eps=(EPS,),
                overrides={"epochs": str(self.epochs)}, out=Path(self.out),
            )
            for kind, defense in DEFENSES.items()
        }  # fmt: skip
        images = len(plans["vanilla"].arrays.y_test)
        if self.n_examples > images:
            raise UserError(f"n_examples is {self.n_examples}; {self.dataset} has {images} test images")
        boxes = {
            kind: measure_boxes(plan, self.seed, self.n_examples, self.pilot, kind) for kind, plan in plans.items()
        }
        rows = [row for kind in boxes for row in _rows(kind, boxes[kind], paper_row(self.dataset, model, kind))]
        if drawn := {kind: each for kind, each in boxes.items() if len(each.x)}:
            with new_figure(self.figure, 11, 8) as canvas:
                canvas.suptitle(f"certified boxes, {self.dataset}, Linf, three hidden layers of {self.hidden}")
                draw(canvas, drawn, PAIR if plans["vanilla"].arrays.classes > 2 else (0, 1))
            figure = f"figure: {self.figure}"
        else:
            figure = "no image has a certified box, so there is no figure"
        headers = ["model", "test accuracy %", "uniform eps", "non-uniform eps", "ratio", "mean cosine", "least cosine"]
        table = render(headers, rows, align="lrrrrrr")
        title = f"{self.dataset}, three hidden layers of {self.hidden}, {self.n_examples} images"
        return f"{title}\n\n{table}\n\n{figure}"


def paper_row(dataset: str, model: str | None, kind: str) -> Row | None:
    """The numbers of the thesis for this data set and model; None if it reports none."""
    blocks = [b for b in read_paper_table("non-uniform").blocks if (b.dataset, b.model) == (dataset, model)]
    return blocks[0].rows[kind] if blocks else None


def measure_boxes(plan: Plan, seed: int, n: int, pilot: int, kind: str) -> Boxes:
    """Train a model (or read a finished run), and compute its boxes around the first n test images."""
    record, folder, _ = run_seed(plan, seed)
    model = plan.new_model(seed).to(plan.device).eval()
    load_weights(model, folder / WEIGHTS)
    with frozen(model), torch.no_grad():
        return Boxes(record.clean.acc, *boxes_around(model, plan.test_split(n), pilot, f"boxes, {kind}"))


def boxes_around(model: nn.Module, test: Split, pilot: int, title: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The images of a split that have a certified box, their labels, and the eps of their boxes and uniform boxes.

    pilot: the number of images that start from the uniform box; the others start from the mean direction of their
    boxes.
    """
    rows = torch.arange(len(test), device=test.y.device)
    parts, direction = [], None
    with Progress(title, len(test), "image") as progress:
        for chunk in ([rows[:pilot]] if pilot else []) + list(rows[pilot:].split(BATCH)):
            batch = test.take(chunk)
            eps, uniform = NonUniform().boxes(model, batch.x, batch.y, direction)
            certified = uniform > 0
            parts.append((batch.x[certified], batch.y[certified], eps[certified], uniform[certified]))
            if direction is None and pilot and certified.any():
                direction = nn.functional.normalize(eps[certified].flatten(1)).mean(dim=0).view(batch.x.shape[1:])
            progress.advance(len(batch))
    x, y, eps, uniform = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    return x, y, eps, uniform


def draw(canvas: Figure, boxes_by_kind: Mapping[str, Boxes], pair: tuple[int, int]) -> None:
    """Figure 3.4: the sorted eps of one image's pixels. Figure 3.5: an image of each class of the pair, and its maps.

    Each model of boxes_by_kind has at least one box. If no image of a class of the pair has a box, the first image
    with a box is drawn.
    """
    pairs = [image_and_maps(boxes_by_kind, label) for label in pair]
    rows = [panels for panels in pairs if panels] or [image_and_maps(boxes_by_kind, None)]
    grid = canvas.add_gridspec(2, 1, height_ratios=[1, len(rows)])
    bottom = canvas.add_subfigure(grid[1])
    top = canvas.add_subfigure(grid[0]).add_subplot()
    for kind, boxes in boxes_by_kind.items():
        eps = UNITS * boxes.eps[0].flatten().sort(descending=True).values
        top.plot(eps.numpy(), label=f"{kind} (uniform {UNITS * float(boxes.uniform[0]):.4f})")
    top.set(title="certified eps of the pixels of one image, sorted", xlabel="pixel", ylabel="eps", yscale="log")
    top.legend()
    columns = max(map(len, rows))
    for row, panels in enumerate(rows):
        for column, (title, pixels) in enumerate(panels.items()):
            axes = bottom.add_subplot(len(rows), columns, row * columns + column + 1)
            axes.imshow(pixels.mean(dim=0).numpy(), cmap="gray")
            axes.set(title=title, xticks=[], yticks=[])


def image_and_maps(boxes_by_kind: Mapping[str, Boxes], label: int | None) -> dict[str, Tensor]:
    """Panels (C,H,W) by title: an image of the class (None: any), and the map of its box by each model that has one.

    Empty if no model has a box around an image of the class.
    """
    panels: dict[str, Tensor] = {}
    for kind, boxes in boxes_by_kind.items():
        rows = torch.arange(len(boxes.y)) if label is None else (boxes.y == label).nonzero().flatten()
        if len(rows):
            if not panels:
                panels[f"image of class {int(boxes.y[rows[0]])}"] = boxes.x[rows[0]]
            panels[f"{kind}: 1 / eps"] = 1 / boxes.eps[rows[0]]
    return panels


def _rows(kind: str, boxes: Boxes, paper: Row | None) -> list[list[str]]:
    """Our numbers, those of the thesis and the differences, with the ratio of non-uniform to uniform eps."""
    cosines = boxes.cosines()
    uniform, average = UNITS * float(boxes.uniform.mean()), UNITS * boxes.average
    least = float(cosines.min()) if len(cosines) else math.nan
    ours = _with_ratio((100 * boxes.accuracy, uniform, average, float(cosines.mean()), least))
    rows = [(f"{kind}, ours", ours, "")]
    if paper is not None:
        theirs = _with_ratio(paper)
        difference = tuple(a - b for a, b in zip(ours, theirs, strict=True))
        rows += [(f"{kind}, thesis", theirs, ""), ("", difference, "+")]
    return [[name, *(_cell(*pair, sign) for pair in zip(row, DECIMALS, strict=True))] for name, row, sign in rows]


def _cell(value: float, digits: int, sign: str) -> str:
    """A formatted number; a dash if no image (or pair of images) defines it."""
    return "-" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def _with_ratio(row: Row) -> Row:
    return (*row[:3], row[2] / row[1], *row[3:])
