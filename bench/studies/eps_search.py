"""The search for the largest eps that can be certified (thesis, section 3.3.2, Algorithm 3.5, figures 3.6 and 3.9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from tabulate import tabulate
from torch import nn

from bench.core import registry, seeds
from bench.core.contracts import Certifier, frozen
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.runs.plan import Request, plan
from bench.studies.figures import new_figure
from bench.training.loop import Loop
from certifiers.crown import FastLin
from certifiers.eps_search import EpsSearch
from certifiers.pec import PEC

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH = 500
Values = npt.NDArray[np.float64]
Method = Literal["pec", "bisection"]


@dataclass(frozen=True)
class Searched:
    """The searches of all examples: bound computations, and the middle of the interval in which each ended, (N,).

    Both are 0 where the model errs without any attack.
    """

    bounds: Values
    optimum: Values

    @property
    def mean_bounds(self) -> float:
        """Of the examples that are classified right, as the thesis counts them; NaN where there are none."""
        right = self.bounds > 0
        return float(self.bounds[right].mean()) if right.any() else float("nan")


def searched(
    model: nn.Module, test: Split, threat: ThreatModel, *, high: Length, precision: float, method: Method = "pec"
) -> Searched:
    """Algorithm 3.5 on each example of a split, from [0, high]."""
    search = EpsSearch(method=method, high=high, precision=precision)
    bounds, optimum = [], []
    with Progress(method, len(test), "example") as progress, frozen(model), torch.no_grad():
        search.check_fits(model, test.image_shape, threat)
        for batch in test.in_order(BATCH):
            found = search.search(model, batch.x, batch.y, threat)
            bounds.append(found.bounds)
            optimum.append(torch.where(found.bounds > 0, (found.low + found.high) / 2, 0))
            progress.advance(len(batch))
    return Searched(torch.cat(bounds).double().cpu().numpy(), torch.cat(optimum).double().cpu().numpy())


@registry.study("eps-search")
def eps_search(
    *,
    checkpoint: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    high: Length = OfEps(4),
    precision: float = 1e-4,
    n_examples: int | None = None,
    image: int = 0,
    figure: str | None = "eps-search.png",
    data_dir: str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> str:
    """How many bounds the largest certified eps costs: Algorithm 3.5 with PEC against plain bisection, and where it is.

    checkpoint: weights, our own or a state dict with its model, dataset, norm and eps, as for `bench eval`; without one
    an fc1 is trained on the digits with pgd-at for five epochs. Both searches start from [0, high] and end when what is
    left is no longer than `precision`. Bound computations are averaged over the examples that are classified right. The
    figure has the certified radius of the image number `image` over the eps of the bounds (figure 3.6), and the
    distribution of the largest certified eps over the examples (figure 3.9).
    """
    drawn = None if figure is None else new_figure(Path(figure), 11, 4.5)
    request = Request(
        defense=None if checkpoint else "pgd-at", checkpoint=Path(checkpoint) if checkpoint else None,
        dataset=dataset, model=model or (None if checkpoint else "fc1"), norm=norm,
        eps=None if eps is None else [eps], attacks=[], n_examples=n_examples,
        overrides={} if checkpoint else {"epochs": "5", "probe_every": "0"}, device=device, threads=threads,
        data_dir=None if data_dir is None else Path(data_dir),
    )  # fmt: skip
    network, test, threat = _given(request)
    assert isinstance(threat.eps, float)
    if not 0 <= image < len(test):
        raise UserError(f"image is {image}; it must be 0 to {len(test) - 1}")
    found = {
        method: searched(network, test, threat, high=high, precision=precision, method=method)
        for method in ("bisection", "pec")
    }
    ratio = found["pec"].mean_bounds / found["bisection"].mean_bounds
    lines = [(name, f"{each.mean_bounds:.2f}", f"{each.optimum.mean():.4f}") for name, each in found.items()]
    table = tabulate(lines, ["search", "bounds", "mean largest eps"], tablefmt="github", disable_numparse=True)
    right = int((found["pec"].bounds > 0).sum())
    text = f"{right} of {len(test)} examples are classified right\n{table}\nratio {ratio:.4f}"
    if drawn is None or figure is None:
        return text
    left, side = drawn.subplots(1, 2)
    tried = np.linspace(0, in_units(high, threat.eps), 101)[1:]
    draw_radii(left, tried, radii(network, test, threat, image, tried), f"image {image}")
    draw_distribution(side, {"pec": found["pec"].optimum}, threat.eps)
    drawn.savefig(figure)
    return f"{text}\nfigure: {figure}"


def _given(request: Request) -> tuple[nn.Module, Split, ThreatModel]:
    """The model of a request, trained where it has no checkpoint, and the test examples it is searched on."""
    asked = plan(request)
    torch.set_num_threads(asked.threads)
    n = asked.config.n_examples
    test = Split(asked.arrays.x_test[:n], asked.arrays.y_test[:n], asked.device)
    if asked.loaded is not None:
        return asked.loaded.to(asked.device).eval(), test, asked.threat
    assert asked.defense is not None
    train = Split(asked.arrays.x_train, asked.arrays.y_train, asked.device)
    model, _ = Loop(asked.new_model(0), asked.defense, train, asked.threat, seed=0).run()
    return model.eval(), test, asked.threat


def radii(model: nn.Module, test: Split, threat: ThreatModel, image: int, tried: Values) -> dict[str, Values]:
    """The radius that fast-lin and pec certify of one image with bounds over each eps of `tried` (figure 3.6)."""
    one = test.take(torch.tensor([image], device=test.y.device))
    many = test.take(torch.full((len(tried),), image, device=test.y.device))
    budgets = ThreatModel(threat.norm, torch.from_numpy(tried).to(one.x.device), threat.box)
    ways: dict[str, Certifier] = {"fast-lin": FastLin(), "pec": PEC()}
    draw = seeds.generator(one.x.device, 0, "radii")
    return {name: way(model, many, budgets, generator=draw).radius.double().cpu().numpy() for name, way in ways.items()}


def draw_radii(axes: Axes, tried: Values, found: Mapping[str, Values], title: str) -> None:
    """Figure 3.6: the certified radius over the eps of the bounds."""
    for (name, radius), style in zip(found.items(), ("--", "-"), strict=True):
        axes.plot(tried, radius, style, label=name)
    axes.set(xlabel="eps of the bounds", ylabel="certified radius", title=title, xlim=(0, tried[-1]))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def draw_distribution(axes: Axes, optima: Mapping[str, Values], eps: float) -> None:
    """Figure 3.9: how the largest certified eps is distributed over the examples, and where the target lies."""
    most = max(float(optimum.max(initial=0)) for optimum in optima.values())
    edges = np.linspace(0, max(most, eps), 51)
    for name, optimum in optima.items():
        axes.hist(optimum, bins=edges.tolist(), histtype="step", label=name)
    axes.axvline(eps, color="tab:red", label=f"eps {eps:.3g}")
    axes.set(xlabel="largest certified eps", ylabel="examples")
    axes.legend()
