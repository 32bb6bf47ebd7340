"""`bench study subnet-structure`: which channels of a pruned network are empty, compared with random masks."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import nn

from bench.core import registry
from bench.core.errors import UserError
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.study import ModelStudy, loaded_model
from bench.training.architecture import Layer, linear_layers
from bench.training.compaction import Pair, compacted, pairs, read_channels, written_channels
from leaderboard.render import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Counts = npt.NDArray[np.float64]
SIMULATIONS = 500  # of a random mask, as in the thesis


@registry.study("subnet-structure")
@dataclass(frozen=True, kw_only=True)
class SubnetStructureStudy(ModelStudy):
    """Figures 5.2 to 5.4 of the thesis for any pruned network: retained weights by channel, and empty channels.

    For each layer: its empty input and output channels, and those of a random mask that keeps the same number of
    weights. For each pair of consecutive layers: the empty outputs of the first, the empty inputs of the second, those
    that are both, and the probability of at least as many by chance. The figure is about the two layers with the most
    weights. The network without its ineffective channels is timed against the unchanged network.
    """

    checkpoint: str | None = None  # weights of a run, or a .packed file; it must be given
    dataset: str | None = None  # name of the data set of the run; none: the default suite's
    seed: int = 0  # seed of the random masks
    batch: int = 128  # images of a timed batch
    repeats: int = 5  # timed batches of each network
    figure: str | None = None  # file of the figure, .svg, .pdf or .png; none: no figure

    def run(self) -> str:
        if self.checkpoint is None:
            raise UserError("the study needs the weights of a pruned network; give them with --set checkpoint=FILE")
        if self.batch < 1 or self.repeats < 1:
            raise UserError(f"batch is {self.batch} and repeats {self.repeats}; both must be at least 1")
        if self.figure is not None:
            check_figure(self.figure)
        plan = self.plan(checkpoint=Path(self.checkpoint), dataset=self.dataset)
        model, draw = loaded_model(plan), np.random.default_rng(self.seed)
        by_name = {module: name for name, module in model.named_modules()}
        rows = [[by_name[layer], *layer_row(layer, draw)] for layer in linear_layers(model)]
        head = ["layer", "weights", "kept", "empty in", "at random", "empty out", "at random"]
        parts = [
            f"{plan.name} on {plan.arrays.name}, {plan.spec.model}: channels without a weight",
            render(head, rows, align="l" + "r" * 6),
        ]
        found = pairs(model)
        if found:
            pair_rows = [[f"{by_name[pair.first]} - {by_name[pair.second]}", *pair_row(pair)] for pair in found]
            names = ["layers", "channels", "no output", "no input", "both", "by chance", "p"]
            parts.append(render(names, pair_rows, align="l" + "r" * 6))
        parts.append(self.timed(model, compacted(model), plan.arrays.shape))
        if self.figure is not None and found:
            largest = max(found, key=lambda pair: pair.first.weight.numel() + pair.second.weight.numel())
            with new_figure(self.figure, 12, 8) as canvas:
                draw_structure(canvas, largest, draw)
            parts.append(f"figure: {self.figure}")
        return "\n\n".join(parts)

    def timed(self, model: nn.Module, small: nn.Module, shape: tuple[int, ...]) -> str:
        x = torch.rand(self.batch, *shape, device=next(iter(model.state_dict().values())).device)
        with torch.no_grad():
            difference = float((model(x) - small(x)).abs().max() / model(x).abs().max())
            seconds = [(seconds_of(model, x), seconds_of(small, x)) for _ in range(self.repeats)]
        counts = [sum(layer.weight.numel() for layer in linear_layers(each)) for each in (model, small)]
        ratio = statistics.median(a / b for a, b in seconds)
        return (
            f"without channels that have no effect: {counts[1]:,} of {counts[0]:,} dense weights, logits differ by "
            f"{difference:.1g} of the largest, {ratio:.2f} times as fast, median of {self.repeats}"
        )


def seconds_of(model: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def channel_counts(layer: Layer) -> tuple[Counts, Counts]:
    """Retained weights of each input and of each output channel."""
    kept = (
        (layer.weight.detach() != 0).flatten(2) if layer.weight.dim() > 2 else (layer.weight.detach() != 0)[..., None]
    )
    counts = kept.sum(dim=2).double()
    return counts.sum(dim=0).cpu().numpy(), counts.sum(dim=1).cpu().numpy()


def random_counts(channels: int, size: int, kept: int, draw: np.random.Generator) -> Counts:
    """Retained weights of each channel in SIMULATIONS random masks, (SIMULATIONS, channels)."""
    return draw.multivariate_hypergeometric([size // channels] * channels, kept, SIMULATIONS, "marginals").astype(float)


def layer_row(layer: Layer, draw: np.random.Generator) -> list[str]:
    size, kept = layer.weight.numel(), int((layer.weight != 0).sum())
    cells = [f"{size:,}", f"{kept:,}"]
    for counts in channel_counts(layer):
        at_random = (random_counts(len(counts), size, kept, draw) == 0).sum(axis=1).mean()
        cells += [f"{int((counts == 0).sum())} of {len(counts)}", f"{at_random:.1f}"]
    return cells


def pair_row(pair: Pair) -> list[str]:
    """Empty outputs and inputs, how many are both, the overlap expected by chance, and its p-value (hypergeometric)."""
    no_output, no_input = (~written_channels(pair)).cpu(), (~read_channels(pair)).cpu()
    n, a, b, both = len(no_output), int(no_output.sum()), int(no_input.sum()), int((no_output & no_input).sum())
    p = float(stats.hypergeom.sf(both - 1, n, a, b))
    return [str(n), str(a), str(b), str(both), f"{a * b / n:.1f}", f"{p:.2g}"]


def draw_structure(canvas: Figure, pair: Pair, draw: np.random.Generator) -> None:
    """Figure 5.2 above; Figures 5.3 and 5.4 below: the masks of both layers, and the channels that are empty."""
    top, bottom = np.asarray(canvas.subfigures(2, 1, height_ratios=(1, 1.4)))
    panels: Any = top.subplots(1, 4)
    for layer, name, pair_of_axes in ((pair.first, "layer 1", panels[:2]), (pair.second, "layer 2", panels[2:])):
        size, kept = layer.weight.numel(), int((layer.weight != 0).sum())
        for axes, counts, side in zip(pair_of_axes, channel_counts(layer), ("input", "output"), strict=True):
            simulated = -np.sort(-random_counts(len(counts), size, kept, draw), axis=1)
            axes.plot(-np.sort(-counts), label="mask")
            axes.plot(simulated.mean(axis=0), label="at random")
            axes.set(title=f"Fig. 5.2: {name}, {side}", xlabel="channel, sorted", ylabel="retained weights")
    panels[0].legend()
    axes_1, bar_1, bar_2, axes_2 = bottom.subplots(1, 4, width_ratios=(6, 0.4, 0.4, 6))
    for axes, layer, turned, title in (
        (axes_1, pair.first, False, "Fig. 5.3, 5.4: layer 1, outputs by inputs"),
        (axes_2, pair.second, True, "layer 2, inputs by outputs"),
    ):
        axes.imshow(picture(layer, turned), cmap="Blues", aspect="auto", interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
    for axes, flags, title in ((bar_1, written_channels(pair), "out"), (bar_2, read_channels(pair), "in")):
        axes.imshow(flags.cpu().numpy()[:, None], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])


def picture(layer: Layer, turned: bool) -> Counts:
    """A mask as a picture, (outputs * height, inputs * width) of kernels; turned: inputs by outputs."""
    mask = (layer.weight.detach() != 0).float().cpu()
    mask = mask.reshape(*mask.shape[:2], *(mask.shape[2:] or (1, 1)))
    mask = mask.transpose(0, 1) if turned else mask
    rows, columns, height, width = mask.shape
    return mask.permute(0, 2, 1, 3).reshape(rows * height, columns * width).double().numpy()
