"""`bench study difficulty`: which training examples are hard in which trainings, and when they are fitted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.datasets.arrays import Arrays
from bench.studies.adversarial_training.adversarial_runs import Task, TrainingStudy, task_of
from bench.studies.adversarial_training.instance_difficulty import (
    SHOWN,
    History,
    difficulty,
    distance,
    feature_norms,
    history_of,
    means_of_groups,
)
from bench.studies.claims import (
    Findings,
    Floats,
    Table,
    effect_claim,
    holds_if,
    jackknife_values,
    mean_interval,
    rank_correlation,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRINTED = 0.375  # the D-distance of random difficulties in the thesis; it is 1/3
LARGEST = 1 / 6  # a D-distance well below that of random difficulties
PERMUTATIONS = 200
CORRELATED = 0.8  # lowest correlation of the difficulties by loss and by error that counts as agreement
KINDS = {"clean": "standard", "FGSM": "fgsm-at", "PGD": "pgd-at"}
OTHERS = {"other network": "a network of another kind", "half as long": "half as many epochs"}
PAIRS = tuple(itertools.combinations_with_replacement(KINDS, 2))
PAGE = 5  # easiest and hardest images of a class in the figure


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiment. attack: settings of the defenses with an attack."""

    train: int
    seeds: int
    epochs: int
    eps: float
    attack: Mapping[str, Any]
    other: str  # another network of the same data


PLANS = {
    ("digits", True): Plan(720, 3, 20, 0.2, {"steps": 3, "alpha": "0.5eps"}, "fc1:width=128"),
    ("digits", False): Plan(1437, 10, 50, 0.2, {"steps": 10}, "fc1:width=128"),
    ("mnist", True): Plan(5000, 3, 20, 0.1, {"steps": 5, "alpha": "0.4eps"}, "cnn"),
    ("mnist", False): Plan(60_000, 5, 20, 0.2, {"steps": 10}, "cnn"),
}


@registry.study("difficulty")
@dataclass(frozen=True, kw_only=True)
class DifficultyStudy(TrainingStudy):
    """Which training examples are hard: difficulty, D-distances between trainings, groups of examples over epochs.

    Thesis, section 4.3.1 and Figure 4.21: Eq. 4.30 to 4.32, Table 4.3, Figures 4.15 and 4.16. The difficulty of an
    example is the rank of its mean loss over the epochs, at the images of the updates. The thesis trains ResNet18 and
    WideResNet34 on CIFAR-10 for 100 and 200 epochs. On digits, unlike in Table 4.3, FGSM trainings rank the examples
    like PGD trainings, and the feature norms of easy and hard examples hardly differ.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(13, 9))
        task = task_of(self.dataset, self.data_dir, fits=True).first(plan.train, 1000)
        runs: dict[str, list[History]] = {kind: [] for kind in (*KINDS, *OTHERS)}
        with Progress("difficulty", plan.seeds * len(runs), "training") as progress:
            for seed in range(plan.seeds):
                for kind in runs:
                    history, norms = self.trained(plan, task, kind, seed)
                    runs[kind].append(history)
                    if kind == "PGD" and seed == 0:
                        first_norms = norms
                    progress.advance(1, kind)
        random_rankings(plan, self.seed, found)
        table_4_3(plan, runs, found)
        by_error(plan, runs["PGD"], found)
        over_epochs(runs["PGD"], found)
        growing_features(runs["PGD"][1], first_norms, found)
        found.draw = partial(draw, arrays=task.arrays, eps=plan.eps, runs=runs["PGD"], norms=first_norms)
        return found

    def trained(self, plan: Plan, task: Task, kind: str, seed: int) -> tuple[History, Floats]:
        """The history of one training, and the feature norms (N, epochs) of the first PGD training."""
        network = plan.other if kind == "other network" else task.model
        epochs = plan.epochs // 2 if kind == "half as long" else plan.epochs
        loop = Task(task.arrays, network, task.norm, task.settings).loop(
            KINDS.get(kind, "pgd-at"), eps=plan.eps, seed=seeds.derive(self.seed, "difficulty", seed), epochs=epochs,
            keep_losses=True, **(plan.attack if KINDS.get(kind, "pgd-at") == "pgd-at" else {}),
        )  # fmt: skip
        norms = []
        for _ in range(epochs):
            loop.run_epoch()
            if kind == "PGD" and seed == 0:
                norms.append(feature_norms(loop.model, loop.split, loop.threat, self.seed))
        return history_of(loop), np.stack(norms, axis=1) if norms else np.empty(0)


def random_rankings(plan: Plan, seed: int, found: Findings) -> None:
    """The D-distance of independent rankings."""
    rng = np.random.default_rng(seeds.derive(seed, "difficulty", "random"))
    rankings = ([difficulty(rng.random(plan.train)) for _ in range(2)] for _ in range(PERMUTATIONS))
    mean = mean_interval([distance(*pair) for pair in rankings])
    claim = f"Section 4.3.1: two random difficulties have an expected D-distance of {PRINTED}"
    text = f"{mean} over {PERMUTATIONS} pairs; E|U - V| of uniform U and V is 1/3"
    found.claims.append(holds_if(claim, text, mean.low <= PRINTED <= mean.high))


def distances_of(first: Sequence[History], second: Sequence[History]) -> Floats:
    """The D-distance of trainings of one kind from those of another with other seeds, as jackknife values (seeds,).

    Their mean is that over all pairs of different seeds.
    """
    return jackknife_values(np.array([[distance(a.difficulty, b.difficulty) for b in second] for a in first]))


def table_4_3(plan: Plan, runs: Mapping[str, Sequence[History]], found: Findings) -> None:
    distances = {pair: distances_of(runs[pair[0]], runs[pair[1]]) for pair in PAIRS}
    rows = [
        (a, *(str(mean_interval(distances[(a, b) if (a, b) in distances else (b, a)])) for b in KINDS)) for a in KINDS
    ]
    title = f"Table 4.3: D-distances of trainings with other seeds, {plan.seeds} seeds (random: 1/3)"
    found.tables.append(Table(title, ("", *KINDS), rows))
    same = {"other seeds": distances["PGD", "PGD"]}
    same |= {name: distances_of(runs["PGD"], runs[key]) for key, name in OTHERS.items()}
    for name, values in same.items():
        claim = f"Table 4.3: PGD trainings with {name} have a D-distance well below 1/3 (below {LARGEST:.2g})"
        mean = mean_interval(values)
        found.claims.append(effect_claim(claim, f"{mean}, {plan.seeds} seeds", mean_interval(LARGEST - values)))
    for near in (("PGD", "PGD"), ("clean", "FGSM"), ("clean", "clean")):
        gap = mean_interval(distances["clean", "PGD"] - distances[near])
        claim = f"Table 4.3: clean and PGD trainings are further apart than {near[0]} and {near[1]} trainings"
        found.claims.append(effect_claim(claim, f"D-distance larger by {gap}, {plan.seeds} seeds", gap))


def by_error(plan: Plan, runs: Sequence[History], found: Findings) -> None:
    """Figure 4.15."""
    values = [rank_correlation(each.difficulty, each.difficulty_by_error) for each in runs]
    worst = min(values)
    claim = f"Figure 4.15: difficulty by loss and by error agree (correlation of at least {CORRELATED}; thesis .9466)"
    text = f"least of {len(runs)} seeds {worst}, {plan.epochs} epochs, {plan.train} images"
    found.claims.append(holds_if(claim, text, worst.mean >= CORRELATED))


def over_epochs(runs: Sequence[History], found: Findings) -> None:
    """Figure 4.21, left: the decrease of the loss of the easiest and of the hardest group, early and late.

    The groups are those of another seed, because the loss of examples that were chosen for their mean loss in the same
    training falls early or late by this choice.
    """
    curves = [
        means_of_groups(each.loss, other.difficulty) for each, other in zip(runs, [*runs[1:], runs[0]], strict=True)
    ]
    third = curves[0].shape[1] // 3
    for when, first, last, sign in (("first", 0, third, 1), ("last", 2 * third, -1, -1)):
        falls = np.array([curve[:, first] - curve[:, last] for curve in curves])
        gap = mean_interval(sign * (falls[:, -1] - falls[:, 0]))
        names = ("easiest", "hardest")[::sign]
        claim = f"Figure 4.21: in the {when} third of the training the loss of the {names[0]} group falls most"
        text = f"by {gap} nats more than that of the {names[1]} group, {len(runs)} seeds"
        found.claims.append(effect_claim(claim, text, gap))
    rows = [(f"G_{g}", *(float(np.mean([c[g, k] for c in curves])) for k in (0, third, 2 * third, -1))) for g in SHOWN]
    header = ("group", "first epoch", "a third", "two thirds", "last epoch")
    found.tables.append(Table("Figure 4.21: mean loss of groups, PGD training, hardest group first", header, rows))


def growing_features(other: History, norms: Floats, found: Findings) -> None:
    """Figure 4.21, right. The difficulty is that of another seed."""
    of_groups = means_of_groups(norms, other.difficulty)
    third = norms.shape[1] // 3
    rows = [(f"G_{g}", *(float(of_groups[g, k]) for k in (0, third, 2 * third, -1))) for g in SHOWN]
    header = ("group", "first epoch", "a third", "two thirds", "last epoch")
    found.tables.append(Table("Figure 4.21: feature norm of groups under PGD, one seed", header, rows))
    early = rank_correlation(norms[:, third], other.difficulty)
    claim = "Figure 4.21: features of easy examples have larger norms"
    found.claims.append(
        effect_claim(claim, f"rank correlation with difficulty after a third of the epochs {early}", early)
    )


def draw(canvas: Figure, *, arrays: Arrays, eps: float, runs: Sequence[History], norms: Floats) -> None:
    """Figures 4.15, 4.21 (the first seed, with the groups of the second) and 4.16."""
    history, other = runs[:2]
    setting = f"{arrays.name}, Linf {eps:g}"
    top, bottom = np.asarray(canvas.subfigures(2, 1, height_ratios=(1, 1)))
    axes = top.add_subplot(1, 3, 1)
    axes.scatter(history.difficulty, history.difficulty_by_error, s=3, alpha=0.5)
    axes.set(title=f"Figure 4.15: {setting}", xlabel="difficulty by loss", ylabel="difficulty by error")
    curves = means_of_groups(history.loss, other.difficulty)
    features = means_of_groups(norms, other.difficulty)
    for panel, values, name in ((2, curves, "loss, nats"), (3, features, "feature norm")):
        axes = top.add_subplot(1, 3, panel)
        for group in SHOWN:
            axes.plot(range(1, values.shape[1] + 1), values[group], label=f"G_{group}")
        axes.set(title="Figure 4.21: PGD training", xlabel="epoch", ylabel=name)
        axes.legend(title="group, 0 hardest")
    bottom.suptitle(f"Figure 4.16: easiest (left) and hardest (right) images of each class, {setting}")
    grid = np.asarray(bottom.subplots(arrays.classes // 2, 4 * PAGE, squeeze=False))
    for place in range(arrays.classes // 2 * 2):
        rows = np.flatnonzero(arrays.y_train == place)
        order = rows[np.argsort(-history.difficulty[rows])]
        for k, row in enumerate((*order[:PAGE], *order[-PAGE:])):
            axes = grid[place // 2, place % 2 * 2 * PAGE + k]
            axes.imshow(arrays.x_train[row].squeeze(), cmap="gray")
    for axes in grid.flat:
        axes.set_axis_off()
