"""`bench study certified-figures`: figures 3.1, 3.2, 3.3 and 3.8 of the thesis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from bench.core import registry
from bench.core.contracts import frozen
from bench.core.errors import UserError
from bench.studies.figure_style import COLOURS, check_figure, new_figure
from bench.studies.study import ResumableStudy
from bench.training.checkpoints import read_state
from certifiers import activations
from certifiers.non_uniform import NonUniform
from certifiers.relaxations import RelaxationKind
from leaderboard.render import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTERVALS = ((-3.0, -1.0), (-1.5, 2.0), (1.0, 3.0))  # left of zero, around it, right of it
CURVES = {"relu": activations.RELU, "sigmoid": activations.SIGMOID, "tanh": activations.TANH}
POINTS = 20  # of figure 3.3
GRID = 256  # points of each axis on which figure 3.3 shows the classes


@registry.study("certified-figures")
@dataclass(frozen=True, kw_only=True)
class CertifiedFiguresStudy(ResumableStudy):
    """Figures 3.1 and 3.2 (lines around an activation), 3.3 (boxes of points in the plane), 3.8 (weights of networks).

    relaxations: the lines of an activation over an interval left of zero, around zero and right of zero, and their
    distance. boxes: a network with two hidden layers of 10 ReLUs is trained on `nearest-seed`; its certified uniform
    and non-uniform boxes around 20 points. weights: the distribution of the entries of all weight tensors of some
    files.
    """

    of: Literal["relaxations", "boxes", "weights"] = "relaxations"  # figures 3.1 and 3.2, 3.3, or 3.8
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"  # activation for `of=relaxations`
    relaxation: RelaxationKind = "parallel"  # of relaxations: parallel is fast-lin's; see certifiers/activations.py
    checkpoints: tuple[str, ...] = ()  # NAME=FILE for each network of weights
    dataset: str = "nearest-seed"  # data set for `of=boxes`; images of 1x2 pixels
    epochs: int = 10  # epochs of training for `of=boxes`
    figure: str = "certified-figures.png"  # file of the figure

    def run(self) -> str:
        check_figure(self.figure)
        match self.of:
            case "relaxations":
                text = self._relaxations()
            case "boxes":
                text = self._boxes()
            case "weights":
                text = self._weights()
        return f"{text}\n\nfigure: {self.figure}"

    def _relaxations(self) -> str:
        curve, rows = CURVES[self.activation], []
        with new_figure(self.figure, 11, 3.5) as canvas:
            for axes, (low, high) in zip(canvas.subplots(1, 3), INTERVALS, strict=True):
                ends = torch.tensor([[low], [high]], dtype=torch.float64)
                lines = curve.relax(ends[0], ends[1], self.relaxation)
                x = torch.linspace(low, high, 201, dtype=torch.float64)
                bias = 0.0 if lines.lower_bias is None else lines.lower_bias
                below, above = lines.lower_slope * x + bias, lines.upper_slope * x + lines.upper_bias
                _draw_lines(axes, x, curve.function(x), below, above)
                slopes = [f"{float(slope):.4f}" for slope in (lines.lower_slope, lines.upper_slope)]
                rows.append([f"[{low:g}, {high:g}]", *slopes, f"{float((above - below).mean()):.4f}"])
        headers = ["interval", "lower slope", "upper slope", "mean distance"]
        return f"{self.activation}, {self.relaxation}\n\n{render(headers, rows, align='lrrr')}"

    def _boxes(self) -> str:
        overrides = {"epochs": str(self.epochs), "crop": "0", "flip": "false", "lr": "0.01", "optimizer": "adam"}
        plan = self.plan(
            defense="standard", dataset=self.dataset, model="mlp:hidden=10,10", norm="Linf", eps=[0.01],
            overrides=overrides | {"probe_every": "0", "weight_decay": "0"},
        )  # fmt: skip
        model, test = self.trained(plan, 0), plan.test_split()
        with frozen(model), torch.no_grad():
            batch = test.take(torch.arange(POINTS, device=test.y.device))
            eps, uniform = NonUniform().boxes(model, batch.x, batch.y)
            side = torch.linspace(0, 1, GRID, device=test.y.device)
            plane = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
            classes = model(plane).argmax(dim=1).view(GRID, GRID).T.cpu()
        certified = (uniform > 0).cpu()
        eps, uniform, x = (each.cpu()[certified] for each in (eps.flatten(1), uniform, batch.x.flatten(1)))
        with new_figure(self.figure, 6, 6) as canvas:
            _draw_boxes(canvas, classes, x, eps, uniform)
        own, same = (4 * float(area.sum()) / POINTS for area in (eps.prod(dim=1), uniform.square()))
        count = f"{int(certified.sum())} of {POINTS} points have a box"
        return f"{count}; mean area: uniform {same:.6f}, non-uniform {own:.6f}"

    def _weights(self) -> str:
        if not self.checkpoints:
            raise UserError("figure 3.8 is of trained weights; name them with --set checkpoints=NAME=FILE,NAME=FILE")
        found: dict[str, Tensor] = {}
        for text in self.checkpoints:
            name, equals, file = text.partition("=")
            if not equals or not Path(file).is_file():
                raise UserError(f"checkpoints {text}: write NAME=FILE, with a file of weights")
            found[name] = entries(Path(file))
        with new_figure(self.figure, 6, 4) as canvas:
            _draw_weights(canvas.subplots(), found)
        rows = [
            [name, f"{len(w):,}", f"{float(w.std()):.4f}", f"{float(w.abs().max()):.3f}", f"{_small(w):.1f}"]
            for name, w in found.items()
        ]
        return render(["weights", "number", "deviation", "largest", "below 0.001, %"], rows, align="lrrrr")


def entries(file: Path) -> Tensor:
    """The entries of all tensors with more than one axis in a file of weights."""
    state = read_state(file)
    return torch.cat([weight.float().flatten() for weight in state.values() if weight.dim() > 1])


def _small(weights: Tensor) -> float:
    return 100 * float((weights.abs() < 1e-3).float().mean())


def _draw_lines(axes: Axes, x: Tensor, curve: Tensor, below: Tensor, above: Tensor) -> None:
    axes.plot(x.numpy(), curve.numpy(), color="black", linestyle="-")
    for line in (below, above):
        axes.plot(x.numpy(), line.numpy(), color=COLOURS[1], linestyle="--")
    axes.axhline(0, color="grey", linewidth=0.5, linestyle="-")
    axes.axvline(0, color="grey", linewidth=0.5, linestyle="-")


def _draw_boxes(canvas: Figure, classes: Tensor, x: Tensor, eps: Tensor, uniform: Tensor) -> None:
    from matplotlib.patches import Rectangle

    axes = canvas.subplots()
    side = torch.linspace(0, 1, len(classes)).numpy()
    for label in classes.unique():
        axes.contour(side, side, (classes == label).float().numpy(), levels=[0.5], colors="black", linewidths=0.8)
    for point, own, same in zip(x, eps, uniform[:, None].expand(-1, 2), strict=True):
        for size, colour in ((same, COLOURS[4]), (own, COLOURS[0])):
            corner = (point - size).tolist()
            width, height = (2 * size).tolist()
            axes.add_patch(Rectangle((corner[0], corner[1]), width, height, fill=False, edgecolor=colour))
        axes.plot(*point.tolist(), marker=".", color="black")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _draw_weights(axes: Axes, found: Mapping[str, Tensor]) -> None:
    largest = max(float(weights.abs().max()) for weights in found.values())
    for name, weights in found.items():
        axes.hist(weights.numpy(), bins=101, range=(-largest, largest), histtype="step", density=True, label=name)
    axes.set(xlabel="weight", ylabel="density", yscale="log")
    axes.legend()
