"""`bench study instance-weights`: how defenses that treat examples differently treat easy and hard ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.studies.adversarial_training.adversarial_runs import Task, TrainingStudy, task_of
from bench.studies.adversarial_training.instance_difficulty import GROUPS, history_of, means_of_groups
from bench.studies.claims import (
    Findings,
    Floats,
    Interval,
    Table,
    effect_claim,
    mean_interval,
    rank_correlation,
)
from bench.training.histories import LOSS
from bench.training.loop import Loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiment."""

    train: int
    seeds: int
    epochs: int
    eps: float
    steps: int  # of the attacks with several steps


PLANS = {
    ("digits", True): Plan(600, 2, 12, 0.15, 3),
    ("digits", False): Plan(1437, 10, 60, 0.15, 10),
    ("mnist", True): Plan(5000, 3, 15, 0.2, 5),
    ("mnist", False): Plan(60_000, 5, 30, 0.2, 10),
}


def final_eps(loop: Loop, weights: Floats) -> Floats:
    return np.asarray(loop.bank["eps"].double().numpy())


def mean_weight(loop: Loop, weights: Floats) -> Floats:
    return weights


def target_of_label(loop: Loop, weights: Floats) -> Floats:
    return np.asarray(loop.bank["targets"][np.arange(loop.examples), loop.split.y].double().numpy())


def target_weight(loop: Loop, weights: Floats) -> Floats:
    return np.asarray(loop.bank["targets"].amax(dim=1).double().numpy())


class Method(NamedTuple):
    """The values (N,) that a defense assigns to examples, and the figure and the correlation of the thesis.

    of: computes the values from a finished training and the mean of exp(-loss) over its epochs (the weight of Algorithm
    4.1).
    """

    defense: str
    what: str
    of: Callable[[Loop, Floats], Floats]
    figure: str
    printed: str
    settings: Mapping[str, Any]


METHODS = (
    Method("iat", "eps", final_eps, "Figure 4.23a", ".884", {"warm_up": 0.2}),
    Method("sat", "weight", target_weight, "Figure 4.23b", "", {"start": 0.45}),
    Method("atta-rw", "mean weight", mean_weight, "Figure 4.26", ".8900", {}),
    Method("atta-at", "target of the label", target_of_label, "Figure 4.27", ".9604", {}),
)


@registry.study("instance-weights")
@dataclass(frozen=True, kw_only=True)
class InstanceWeightsStudy(TrainingStudy):
    """IAT's eps, SAT's weights, and Algorithm 4.1's weights and targets against the difficulty of the examples.

    Thesis, section 4.3.5, Figures 4.23, 4.26 and 4.27: methods against adversarial overfitting assign less to hard
    examples. The difficulty is that of a PGD training with another seed. The weight of ATTA-RW is the probability of
    the label at the attacked image, averaged over the epochs; eps, weights and targets of the others are those at the
    end. The thesis' correlations are for CIFAR-10 and apparently Pearson's; these are rank correlations.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(13, 3.8))
        task = task_of(self.dataset, self.data_dir).first(plan.train, 100)
        pairs: dict[str, list[tuple[Floats, Floats]]] = {method.defense: [] for method in METHODS}
        with Progress("instance-weights", plan.seeds * (len(METHODS) + 1), "training") as progress:
            for row in range(plan.seeds):
                at = seeds.derive(self.seed, "instance-weights", row)
                ranking = finished(plan, task, "pgd-at", seeds.derive(at, "ranking"), {})
                difficulty = history_of(ranking).difficulty
                progress.advance(1, "ranking")
                for method in METHODS:
                    loop = finished(plan, task, method.defense, at, method.settings)
                    weights = np.exp(-loop.bank[LOSS].double().numpy()).mean(axis=1)
                    pairs[method.defense].append((difficulty, method.of(loop, weights)))
                    progress.advance(1, method.defense)
        report(plan, pairs, found)
        found.draw = partial(draw, plan=plan, pairs=pairs, dataset=self.dataset)
        return found


def finished(plan: Plan, task: Task, defense: str, seed: int, settings: Mapping[str, Any]) -> Loop:
    """A finished training."""
    own = dict(settings)
    if not defense.startswith("atta"):
        own |= {"steps": plan.steps, "alpha": f"{1.5 / plan.steps:g}eps"}
    loop = task.loop(defense, eps=plan.eps, seed=seed, epochs=plan.epochs, keep_losses=True, **own)
    for _ in range(plan.epochs):
        loop.run_epoch()
    return loop


def report(plan: Plan, pairs: Mapping[str, list[tuple[Floats, Floats]]], found: Findings) -> None:
    rows = []
    for method in METHODS:
        each = pairs[method.defense]
        of_groups = np.mean([means_of_groups(values, difficulty) for difficulty, values in each], axis=0)
        name = f"{method.defense}: {method.what}"
        rows.append((name, *(float(of_groups[group]) for group in (0, 3, 6, GROUPS - 1))))
        values = [rank_correlation(difficulty, value) for difficulty, value in each]
        least: Interval = min(values, key=lambda interval: interval.mean)
        printed = f" (thesis: {method.printed})" if method.printed else ""
        claim = f"{method.figure}: {method.defense} gives hard examples a smaller {method.what}{printed}"
        mean = mean_interval([interval.mean for interval in values]).mean
        text = f"rank correlation with difficulty {mean:.3g}, least of {len(values)} seeds {least}, {plan.train} images"
        found.claims.append(effect_claim(claim, text, least))
    header = ("method", "G_0 (hardest)", "G_3", "G_6", "G_9 (easiest)")
    title = f"Means of groups of difficulty, {plan.seeds} seeds, {plan.epochs} epochs, Linf {plan.eps:g}"
    found.tables.append(Table(title, header, rows))


def draw(canvas: Figure, *, plan: Plan, pairs: Mapping[str, list[tuple[Floats, Floats]]], dataset: str) -> None:
    canvas.suptitle(f"{dataset}, Linf {plan.eps:g}, one seed")
    for panel, method in enumerate(METHODS, start=1):
        axes = canvas.add_subplot(1, len(METHODS), panel)
        axes.scatter(*pairs[method.defense][0], s=3, alpha=0.5)
        axes.set(title=f"{method.figure}: {method.defense}", xlabel="difficulty (0 hardest)", ylabel=method.what)
