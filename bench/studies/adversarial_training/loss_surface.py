"""`bench study loss-surface`: the loss in the plane of the FGSM direction and a random one (thesis, figure 5.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core import registry, seeds
from bench.core.contracts import Batch, frozen
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.threat import ThreatModel
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.study import ModelStudy, loaded_model
from leaderboard.render import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Surface = npt.NDArray[np.float64]


@registry.study("loss-surface")
@dataclass(frozen=True, kw_only=True)
class LossSurfaceStudy(ModelStudy):
    """The mean loss at x + eps (a FGSM + b random sign), a and b from 0 to 1, over test images that are correct.

    Thesis, figure 5.5: after catastrophic overfitting the loss is high in the middle of the ball and low at its end in
    the FGSM direction. `bulge` is the share of the images whose loss somewhere on the path to the FGSM point exceeds
    that at the FGSM point by more than a tenth; it is near 0 for a well-trained network. Points are kept in [0, 1].
    """

    checkpoints: tuple[str, ...] = ()  # files of weights, joined by '+'; each is a row and a panel
    suite: str | None = None  # suite with the data, model and threat model; none: the suite of the data set
    dataset: str | None = None  # name of the data set, if there is no suite
    model: str | None = None  # spec of the model, for weights that do not say it
    norm: str = "Linf"  # norm of the threat model, if there is no suite
    eps: float | None = None  # eps of the threat model, if there is no suite
    n_examples: int = 100  # number of test images, the first ones
    points: int = 11  # points of the grid along each side
    figure: str | None = None  # file of the figure; none: no figure
    seed: int = 0  # seed of the random directions

    def run(self) -> str:
        if not self.checkpoints:
            raise UserError("give the weights with --set checkpoints=FILE; a run's are its weights.safetensors")
        if self.points < 3 or self.n_examples < 1:
            raise UserError(f"points is {self.points} and n_examples {self.n_examples}; at least 3 and 1")
        if self.figure is not None:
            check_figure(self.figure)
        surfaces, rows = {}, []
        for file in self.checkpoints:
            plan = self.plan(
                checkpoint=Path(file), suite=self.suite, dataset=self.dataset, model=self.model,
                norm=None if self.suite else self.norm, eps=None if self.eps is None else [self.eps],
                n_examples=self.n_examples,
            )  # fmt: skip
            if plan.threat.norm != "Linf":
                raise UserError("the FGSM direction is that of Linf; give a suite or a norm of Linf")
            (batch,) = plan.test_split().in_order(self.n_examples)
            generator = seeds.generator(plan.device, self.seed, "loss-surface")
            surface, bulge = loss_surface(loaded_model(plan), batch, plan.threat, self.points, generator)
            name = "/".join(Path(file).parts[-3:-1]) or file  # the folder of the run
            name = file if name in surfaces else name
            surfaces[name] = surface
            places = [(0, 0), (self.points // 2, 0), (-1, 0), (0, -1)]
            rows.append([name, *(f"{surface[place]:.3g}" for place in places), f"{100 * bulge:.0f}"])
        header = ["weights", "clean", "half-way to FGSM", "FGSM", "random sign", "bulge %"]
        text = render(header, rows, align="l" + "r" * 5)
        if self.figure is None:
            return text
        with new_figure(self.figure, 4.5 * len(surfaces), 4.2) as canvas:
            draw(canvas, surfaces)
        return f"{text}\n\nfigure: {self.figure}"


def loss_surface(
    model: nn.Module, batch: Batch, threat: ThreatModel, points: int, generator: torch.Generator
) -> tuple[Surface, float]:
    """The mean loss (points, points) by a (FGSM) and b (random), and the share of images with a bulge."""
    assert isinstance(threat.eps, float)
    with frozen(model):
        x = batch.x.clone().requires_grad_()
        logits = model(x)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, batch.y, reduction="sum"), x)
        correct = logits.argmax(dim=1) == batch.y
        if not correct.any():
            raise UserError("the network classifies none of these images correctly; give more, or other weights")
        x, y, fgsm = batch.x[correct], batch.y[correct], gradient.sign()[correct]
        random = 2.0 * (torch.rand(x.shape, generator=generator, device=x.device) < 0.5) - 1
        losses = torch.empty(points, points, len(y))
        scale = torch.linspace(0, threat.eps, points).tolist()
        with Progress("loss-surface", points, "row") as progress, torch.no_grad():
            for i, a in enumerate(scale):
                for j, b in enumerate(scale):
                    point = threat.clamp(x + a * fgsm + b * random)
                    losses[i, j] = cross_entropy(model(point), y, reduction="none").cpu()
                progress.advance(1)
    return losses.double().mean(dim=2).numpy(), bulges(losses[:, 0])


def bulges(path: Tensor) -> float:
    """The share of images whose loss (points, N) on the path exceeds that at its end by more than a tenth."""
    return float((path[:-1].amax(dim=0) > 1.1 * path[-1]).double().mean())


def draw(canvas: Figure, surfaces: dict[str, Surface]) -> None:
    """A panel for each network, with the loss over both directions as a surface."""
    for number, (name, surface) in enumerate(surfaces.items(), start=1):
        axes = canvas.add_subplot(1, len(surfaces), number, projection="3d")
        shares = np.linspace(0, 1, len(surface))
        fgsm, random = np.meshgrid(shares, shares, indexing="ij")
        axes.plot_surface(fgsm, random, surface, cmap="viridis")
        axes.set(xlabel="FGSM / eps", ylabel="random / eps", zlabel="loss", title=name)
        axes.set_box_aspect(None, zoom=0.85)  # room for the label of the third axis
