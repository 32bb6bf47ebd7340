"""`bench study eps-search`: the largest eps that can be certified (thesis, section 3.3.2, Algorithm 3.5)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.core import registry, seeds
from bench.core.contracts import Certifier, frozen
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.studies.figure_style import COLOURS, LINES, check_figure, new_figure
from bench.studies.study import ResumableStudy, loaded_model
from certifiers.crown import FastLin
from certifiers.eps_search import EpsSearch
from certifiers.pec import PEC
from leaderboard.render import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH = 500
Values = npt.NDArray[np.float64]
Method = Literal["pec", "bisection", "newton"]


@dataclass(frozen=True)
class LargestEps:
    """For each example, (N,): the bound computations of its search, and the midpoint of the final interval.

    Both are 0 for examples that are misclassified without any attack.
    """

    bounds: Values
    optimum: Values

    @property
    def mean_bounds(self) -> float:
        """The mean over the correctly classified examples, as in the thesis; NaN if there are none."""
        correct = self.bounds > 0
        return float(self.bounds[correct].mean()) if correct.any() else float("nan")


def search_largest_eps(
    model: nn.Module, test: Split, threat: ThreatModel, *, high: Length, precision: float, method: Method = "pec"
) -> LargestEps:
    """Algorithm 3.5 on each example of a split, starting from the interval [0, high]."""
    search = EpsSearch(method=method, high=high, precision=precision)
    bounds, optimum = [], []
    with Progress(method, len(test), "example") as progress, frozen(model), torch.no_grad():
        search.check_fits(model, test.image_shape, threat)
        for batch in test.in_order(BATCH):
            result = search.search(model, batch.x, batch.y, threat)
            bounds.append(result.bounds)
            optimum.append(torch.where(result.bounds > 0, (result.low + result.high) / 2, 0))
            progress.advance(len(batch))
    return LargestEps(torch.cat(bounds).double().cpu().numpy(), torch.cat(optimum).double().cpu().numpy())


@registry.study("eps-search")
@dataclass(frozen=True, kw_only=True)
class EpsSearchStudy(ResumableStudy):
    """The number of bounds that the search for the largest certified eps computes: PEC, plain bisection and Newton.

    Without a checkpoint, an fc1 is trained on the digits with pgd-at for five epochs. The number of bounds is averaged
    over the correctly classified examples. The figure shows the certified radius of one image over the eps of the
    bounds (figure 3.6), and the distribution of the largest certified eps over the examples (figure 3.9).
    """

    checkpoint: str | None = None  # file of weights, as of `bench eval`
    model: str | None = None  # spec of the model
    dataset: str | None = None  # name of the data set, or an .npz file
    norm: Literal["Linf", "L2"] | None = None  # norm of the threat model; none: the suite's
    eps: float | None = None  # eps of the threat model; none: the suite's
    high: Length = OfEps(4)  # all searches start from the interval [0, high]
    precision: float = 1e-4  # length of the interval at which the searches end
    n_examples: int | None = None  # the first N test examples; none: all
    image: int = 0  # number of the image of the first panel
    figure: str | None = "eps-search.png"  # file of the figure; none: no figure

    def run(self) -> str:
        if self.figure is not None:
            check_figure(self.figure)
        setting = {
            "dataset": self.dataset, "norm": self.norm, "eps": None if self.eps is None else [self.eps],
            "n_examples": self.n_examples,
        }  # fmt: skip
        if self.checkpoint is None:
            training = {"epochs": "5", "probe_every": "0"}
            plan = self.plan(defense="pgd-at", model=self.model or "fc1", overrides=training, **setting)
        else:
            plan = self.plan(checkpoint=Path(self.checkpoint), model=self.model, **setting)
        test, threat = plan.test_split(), plan.threat
        assert isinstance(threat.eps, float)
        if not 0 <= self.image < len(test):
            raise UserError(f"image is {self.image}; it must be 0 to {len(test) - 1}")
        high = in_units(self.high, threat.eps)
        if not 0 < self.precision < high:
            raise UserError(f"precision is {self.precision} and high {high:g}; take 0 < precision < high")
        with frozen(untrained := plan.new_model(0).eval()):  # the architecture is checked before it is trained
            EpsSearch(high=self.high, precision=self.precision).check_fits(untrained, test.image_shape, threat)
        model = self.trained(plan, 0) if plan.loaded is None else loaded_model(plan)
        methods: tuple[Method, ...] = ("bisection", "pec", "newton")
        results = {
            method: search_largest_eps(model, test, threat, high=self.high, precision=self.precision, method=method)
            for method in methods
        }
        if not (results["pec"].bounds > 0).any():
            return f"none of {len(test)} examples is classified correctly, so there is nothing to search"
        ratio = results["pec"].mean_bounds / results["bisection"].mean_bounds
        lines = [(name, f"{each.mean_bounds:.2f}", f"{each.optimum.mean():.4f}") for name, each in results.items()]
        table = render(["search", "bounds", "mean largest eps"], lines)
        correct = int((results["pec"].bounds > 0).sum())
        text = f"{correct} of {len(test)} examples are classified correctly\n{table}\nratio {ratio:.4f}"
        if self.figure is None:
            return text
        with new_figure(self.figure, 11, 4.5) as canvas:
            canvas.suptitle(f"{plan.name} on {plan.arrays.name}, {plan.spec.model}, {threat.norm}")
            left, right = canvas.subplots(1, 2)
            eps = np.linspace(0, high, 101)[1:]
            draw_radii(left, eps, certified_radii(model, test, threat, self.image, eps), f"image {self.image}")
            draw_distribution(right, {"pec": results["pec"].optimum}, threat.eps)
        return f"{text}\nfigure: {self.figure}"


def certified_radii(model: nn.Module, test: Split, threat: ThreatModel, image: int, eps: Values) -> dict[str, Values]:
    """The radius that fast-lin and pec certify for one image, with bounds over each of `eps` (figure 3.6)."""
    batch = test.take(torch.full((len(eps),), image, device=test.y.device))
    budgets = ThreatModel(threat.norm, torch.from_numpy(eps).to(batch.x.device), threat.box)
    certifiers: dict[str, Certifier] = {"fast-lin": FastLin(), "pec": PEC()}
    generator = seeds.generator(batch.x.device, 0, "radii")
    return {
        name: certifier(model, batch, budgets, generator=generator).radius.double().cpu().numpy()
        for name, certifier in certifiers.items()
    }


def draw_radii(axes: Axes, eps: Values, radii: Mapping[str, Values], title: str) -> None:
    """Figure 3.6: the certified radius over the eps of the bounds."""
    for name, radius in radii.items():
        axes.plot(eps, radius, label=name)
    axes.set(xlabel="eps of the bounds", ylabel="certified radius", title=title, xlim=(0, eps[-1]))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def draw_distribution(axes: Axes, optima: Mapping[str, Values], eps: float) -> None:
    """Figure 3.9: the distribution of the largest certified eps over the examples; a line marks `eps`."""
    largest = max(float(optimum.max(initial=0)) for optimum in optima.values())
    edges = np.linspace(0, max(largest, eps), 51)
    for (name, optimum), line in zip(optima.items(), itertools.cycle(LINES)):  # bars take no line style from the cycle
        axes.hist(optimum, bins=edges.tolist(), histtype="step", linestyle=line, label=name)
    axes.axvline(eps, color=COLOURS[-1], linestyle=LINES[-1], label=f"eps {eps:.3g}")
    axes.set(xlabel="largest certified eps", ylabel="examples")
    axes.legend()
