"""Certified boxes of the largest volume (thesis, section 3.2): tables 3.2 and 3.3, figures 3.4 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts import frozen
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.datasets.split import Split
from bench.runs import run as harness
from bench.runs.plan import Plan, Request, plan
from bench.studies.figures import new_figure
from bench.studies.references import read
from bench.training.checkpoints import WEIGHTS, read_state
from certifiers.non_uniform import NonUniform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFENSES = {"vanilla": "standard", "robust": "pgd-at"}
UNITS = 2  # the thesis' images are in [-1, 1], so every eps is twice ours
EPS = 0.1 / UNITS  # of its adversarial training
PAIR = (1, 7)  # the classes of figure 3.5
AT_ONCE = 50

Figures = tuple[float, ...]  # test accuracy in percent; mean eps, uniform and not; mean and least cosine


@dataclass(frozen=True)
class Boxes:
    """Of one model: its accuracy, the images that have a certified box, with their labels, and their eps."""

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
        """Of the eps of every two images."""
        unit = nn.functional.normalize(self.eps.flatten(1), dim=1)
        rows, columns = torch.triu_indices(len(unit), len(unit), offset=1)
        return (unit @ unit.T)[rows, columns]


@registry.study("non-uniform")
def non_uniform(
    *,
    dataset: str = "mnist",
    hidden: int = 100,
    epochs: int = 20,
    n_examples: int = 50,
    seed: int = 0,
    data_dir: str = "",
    out: str = "runs",
    figure: str = "non-uniform.png",
) -> str:
    """The largest certified boxes of a vanilla and a robust network, beside the thesis' (tables 3.2 and 3.3).

    The networks have three hidden layers and are trained here (`standard` and `pgd-at`, eps 0.05), in run folders below
    `out` that are found again. eps are printed in the thesis' unit, for images in [-1, 1]: twice ours. The figure shows
    the eps of all pixels of one image, and the maps of an image of class 1 and one of class 7 (figures 3.4 and 3.5).
    """
    if n_examples < 2:
        raise UserError(f"n_examples is {n_examples}; two images at least have a cosine")
    canvas = new_figure(Path(figure), 11, 8)
    rows: list[list[str]] = []
    found: dict[str, Boxes] = {}
    for kind, defense in DEFENSES.items():
        request = Request(
            defense=defense, dataset=dataset, model=f"mlp:hidden={hidden},{hidden},{hidden}", norm="Linf", eps=(EPS,),
            attacks=(), overrides={"epochs": str(epochs)}, data_dir=Path(data_dir) if data_dir else None, out=Path(out),
        )  # fmt: skip
        found[kind] = measure(plan(request), seed, n_examples, kind)
        rows += _rows(kind, found[kind], printed(dataset, request.model, kind))
    draw(canvas, found)
    canvas.savefig(figure)
    headers = ["model", "test accuracy %", "uniform eps", "non-uniform eps", "ratio", "mean cosine", "least cosine"]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=["left", *["right"] * 6])
    return f"{dataset}, three hidden layers of {hidden}, {n_examples} images\n\n{table}\n\nfigure: {figure}"


def printed(dataset: str, model: str | None, kind: str) -> Figures | None:
    """The thesis' figures for such a model, where it has any."""
    blocks = [block for block in read("non-uniform").blocks if (block.dataset, block.model) == (dataset, model)]
    return blocks[0].rows[kind] if blocks else None


def measure(plan: Plan, seed: int, n: int, kind: str) -> Boxes:
    """Train a model, or find it trained, and its boxes around the first n test images."""
    record, folder = harness.run(plan, seed)
    model = plan.new_model(seed).to(plan.device).eval()
    model.load_state_dict(read_state(folder / WEIGHTS), strict=True)
    test = Split(plan.arrays.x_test[:n], plan.arrays.y_test[:n], plan.device)
    parts = []
    with frozen(model), torch.no_grad(), Progress(f"boxes, {kind}", len(test), "image") as progress:
        for batch in test.in_order(AT_ONCE):
            eps, uniform = NonUniform().boxes(model, batch.x, batch.y)
            there = uniform > 0
            parts.append((batch.x[there], batch.y[there], eps[there], uniform[there]))
            progress.advance(len(batch))
    x, y, eps, uniform = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    return Boxes(record.clean.acc, x, y, eps, uniform)


def draw(canvas: Figure, found: Mapping[str, Boxes]) -> None:
    """Figure 3.4: the eps of one image's pixels, in order. Figure 3.5: an image of each class of PAIR, and its maps."""
    grid = canvas.add_gridspec(2, 1, height_ratios=[1, len(PAIR)])
    bottom = canvas.add_subfigure(grid[1])
    wide = canvas.add_subfigure(grid[0]).add_subplot()
    for kind, boxes in found.items():
        eps = UNITS * boxes.eps[0].flatten().sort(descending=True).values
        wide.plot(eps.numpy(), label=f"{kind} (uniform {UNITS * float(boxes.uniform[0]):.4f})")
    wide.set(title="certified eps of the pixels of one image, in order", xlabel="pixel", ylabel="eps", yscale="log")
    wide.legend()
    for row, label in enumerate(PAIR):
        for column, (kind, boxes) in enumerate(found.items()):
            which = (boxes.y == label).nonzero().flatten()
            if len(which) == 0:
                continue
            maps = {0: ("image", boxes.x)} if column == 0 else {}
            for place, (title, images) in (maps | {column + 1: (f"{kind}: 1 / eps", 1 / boxes.eps)}).items():
                axes = bottom.add_subplot(len(PAIR), 1 + len(found), row * (1 + len(found)) + place + 1)
                axes.imshow(images[which[0]].mean(dim=0).numpy(), cmap="gray")
                axes.set(title=title, xticks=[], yticks=[])


def _rows(kind: str, boxes: Boxes, published: Figures | None) -> list[list[str]]:
    cosines = boxes.cosines()
    uniform, average = UNITS * float(boxes.uniform.mean()), UNITS * boxes.average
    ours = (100 * boxes.accuracy, uniform, average, float(cosines.mean()), float(cosines.min()))
    named = {f"{kind}, ours": ours} | ({} if published is None else {f"{kind}, thesis": published})
    rows = [
        [name, f"{acc:.1f}", f"{one:.4f}", f"{many:.4f}", f"{many / one:.3f}", f"{mean:.4f}", f"{least:.4f}"]
        for name, (acc, one, many, mean, least) in named.items()
    ]
    if published is not None:
        acc, one, many, mean, least = (mine - theirs for mine, theirs in zip(ours, published, strict=True))
        ratio = average / uniform - published[2] / published[1]
        rows.append(
            ["", f"{acc:+.1f}", f"{one:+.4f}", f"{many:+.4f}", f"{ratio:+.3f}", f"{mean:+.4f}", f"{least:+.4f}"]
        )
    return rows
