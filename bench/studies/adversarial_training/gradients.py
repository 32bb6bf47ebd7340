"""`bench study gradients`: gradient norms, robust error and distance from the start, early and late, over eps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.core import registry, seeds
from bench.core.contracts import Batch
from bench.core.modes import mode_of
from bench.core.progress import Progress
from bench.studies.adversarial_training.adversarial_runs import Task, TrainingStudy, task_of
from bench.studies.adversarial_training.weight_space import weights_of
from bench.studies.claims import Findings, Floats, Table, effect_claim, mean_interval, rank_correlation
from bench.training.histories import WRONG
from bench.training.loop import Loop
from bench.training.symptoms import FiredUnits, share_of_one_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiment. shown: updates of the early and of the late phase."""

    train: int
    eps: tuple[float, ...]
    seeds: int
    epochs: int
    shown: int
    attack: Mapping[str, Any]


PLANS = {
    ("digits", True): Plan(640, (0.0, 0.1, 0.2, 0.3), 3, 15, 50, {"steps": 3, "alpha": "0.5eps"}),
    ("digits", False): Plan(1437, (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3), 10, 60, 300, {"steps": 10}),
    ("mnist", True): Plan(5000, (0.0, 0.1, 0.2, 0.3, 0.4), 3, 8, 200, {"steps": 10}),
    ("mnist", False): Plan(60_000, (0.0, 0.1, 0.2, 0.3, 0.4), 5, 100, 500, {"steps": 50, "alpha": "0.05eps"}),
}


@dataclass
class Path:
    """|gradient|, robust error of the batch and distance from the start at each update of one training; and its end."""

    gradient: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    dead: float = 0.0  # the largest share of dead units in a layer
    one_class: float = 0.0  # the share of the class that is predicted most often


class WatchedLoop(Loop):
    """A training loop that records the path of the weights."""

    path: Path
    start: torch.Tensor

    def step(self) -> None:
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.path.gradient.append(float(torch.cat(gradients).norm()))
        super().step()
        self.path.distance.append(float((weights_of(self.model) - self.start).norm()))

    def train_on(self, batch: Batch) -> None:
        super().train_on(batch)
        self.path.error.append(float(self.bank[WRONG][batch.index, self.epoch].float().mean()))


@registry.study("gradients")
@dataclass(frozen=True, kw_only=True)
class GradientsStudy(TrainingStudy):
    """Adversarial training over eps: it leaves its start more slowly, and its gradients do not vanish at the end.

    Thesis, section 4.2.3, Figures 4.3 and 4.4 (LeNet on MNIST with Adam; 500 updates), and the constant classifiers and
    dead units that it observes at large eps. The robust error is measured on the batch of the update. On MNIST, this
    study uses LeNet of width 2 instead of 16.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(13, 4))
        task = task_of(self.dataset, self.data_dir).first(plan.train, 100)
        paths: dict[float, list[Path]] = {eps: [] for eps in plan.eps}
        with Progress("gradients", plan.seeds * len(plan.eps), "training") as progress:
            for eps in plan.eps:
                for row in range(plan.seeds):
                    paths[eps].append(follow(plan, task, eps, seeds.derive(self.seed, "gradients", row)))
                    progress.advance(1, f"eps {eps:g}")
        report(plan, paths, found)
        found.draw = partial(draw, plan=plan, paths=paths, dataset=self.dataset)
        return found


def follow(plan: Plan, task: Task, eps: float, seed: int) -> Path:
    """Train once, and evaluate the units of the trained network on its training images."""
    loop = task.loop(
        "pgd-at", eps=eps, seed=seed, epochs=plan.epochs, keep_losses=True, **(plan.attack if eps else {}),
        kind=WatchedLoop,
    )  # fmt: skip
    assert isinstance(loop, WatchedLoop)
    loop.path, loop.start = Path(), weights_of(loop.model)
    model, _ = loop.run()
    activity, predictions = FiredUnits(), []
    with mode_of(model, training=False), torch.no_grad(), activity.watching(model):
        predictions = [model(batch.x).argmax(dim=1) for batch in loop.split.in_order(1000)]
    loop.path.dead, loop.path.one_class = activity.most_dead, share_of_one_class(torch.cat(predictions))
    return loop.path


def report(plan: Plan, paths: Mapping[float, list[Path]], found: Findings) -> None:
    early, late = slice(0, plan.shown), slice(-plan.shown, None)

    def means(name: str, part: slice) -> Floats:
        return np.array([[np.mean(getattr(path, name)[part]) for path in paths[eps]] for eps in plan.eps]).T

    measured = {
        "early gradient": means("gradient", early), "early error": means("error", early),
        "early distance": means("distance", early), "late gradient": means("gradient", late),
    }  # fmt: skip
    rows = [
        (eps, *(str(mean_interval(values[:, j])) for values in measured.values()),
         sum(path.one_class == 1 for path in paths[eps]), float(max(path.dead for path in paths[eps])))
        for j, eps in enumerate(plan.eps)
    ]  # fmt: skip
    header = ("eps", *measured, "constant classifiers", "dead units, worst layer")
    title = f"Figures 4.3 and 4.4: means over the first and the last {plan.shown} updates, {plan.seeds} seeds"
    found.tables.append(Table(title, header, rows))
    at = np.tile(plan.eps, plan.seeds)
    for figure, name, sign, claim in (
        ("4.3", "early gradient", -1, "at a larger eps the gradients are smaller early in the training"),
        ("4.3", "early distance", -1, "at a larger eps the weights move less early in the training"),
        ("4.3", "early error", 1, "at a larger eps the robust training error falls later"),
    ):
        trend = rank_correlation(at, measured[name].ravel())
        text = f"rank correlation of eps and {name} {trend}, {len(at)} trainings"
        found.claims.append(effect_claim(f"Figure {figure}: {claim}", text, trend.times(sign)))
    fitted = np.array([[path.one_class < 1 for path in paths[eps]] for eps in plan.eps]).T.ravel()
    trend = rank_correlation(at[fitted], measured["late gradient"].ravel()[fitted])
    claim = "Figure 4.4: at a larger eps the gradients are larger at the end of the training"
    text = f"rank correlation {trend}, {fitted.sum()} trainings, without {(~fitted).sum()} constant classifiers"
    found.claims.append(effect_claim(claim, text, trend))
    if not fitted.all():
        found.notes.append(
            f"{int((~fitted).sum())} of {len(at)} trainings ended in a constant classifier (section 4.2.3), of which "
            "`bench run` warns; a growing eps (eps_growth) or another learning rate may avoid it."
        )


def draw(canvas: Figure, *, plan: Plan, paths: Mapping[float, list[Path]], dataset: str) -> None:
    panels = (
        ("gradient", slice(0, plan.shown), "Figure 4.3: |gradient|"), ("error", slice(0, plan.shown), "robust error"),
        ("distance", slice(0, plan.shown), "distance from the start"),
        ("gradient", slice(-plan.shown, None), "Figure 4.4: |gradient|, end"),
    )  # fmt: skip
    canvas.suptitle(f"{dataset}, PGD training, Linf; mean of {plan.seeds} seeds")
    for panel, (name, part, title) in enumerate(panels, start=1):
        axes = canvas.add_subplot(1, len(panels), panel)
        for eps in plan.eps:
            axes.plot(np.mean([getattr(path, name)[part] for path in paths[eps]], axis=0), label=f"eps {eps:g}")
        axes.set(title=title, xlabel="update", yscale="log" if name == "gradient" else "linear")
        if panel == 1:
            axes.legend()
