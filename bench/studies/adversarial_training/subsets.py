"""`bench study subsets`: adversarial training on the easiest, random and hardest examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.studies.adversarial_training.adversarial_runs import (
    ATTACK_STEPS,
    Task,
    TrainingStudy,
    class_balanced,
    if_fitted,
    measure,
    task_of,
)
from bench.studies.adversarial_training.instance_difficulty import history_of
from bench.studies.claims import Findings, Floats, Interval, Table, effect_claim, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUBSETS = ("easiest", "random", "hardest")
Rows = npt.NDArray[np.int64]  # of training examples


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiment. share: of the training examples in a subset; every: epochs between measurements."""

    train: int
    test: int
    seeds: int
    ranking: int  # epochs of the training that ranks the examples
    epochs: int  # of a training on a subset
    every: int
    eps: Mapping[str, tuple[float, ...]]  # by norm; the first is that of the claims
    attack: Mapping[str, Any]
    share: float = 1 / 3
    more: tuple[float, ...] = (2 / 3, 1.0)  # shares of the easiest examples of figure 4.20, after `share`
    fgsm: bool = True  # FGSM training too


PLANS = {
    ("digits", True): Plan(
        720, 200, 3, 5, 40, 10, {"Linf": (0.04,), "L2": (0.25,)}, {"steps": 2, "alpha": "0.75eps"}, fgsm=False
    ),
    ("digits", False): Plan(1437, 360, 10, 30, 100, 5, {"Linf": (0.1, 0.05, 0.2), "L2": (0.5, 0.25, 1.0)}, {}),
    ("mnist", True): Plan(3000, 1000, 3, 10, 40, 5, {"Linf": (0.1,), "L2": (0.75,)}, {"steps": 5, "alpha": "0.4eps"}),
    ("mnist", False): Plan(60_000, 10_000, 3, 20, 100, 5, {"Linf": (0.2, 0.1, 0.3), "L2": (1.5, 0.75, 2.0)}, {}),
}  # fmt: skip


class Setting(NamedTuple):
    """The training of a subset; eps 0 is vanilla training."""

    defense: Literal["standard", "fgsm-at", "pgd-at"]
    norm: Literal["Linf", "L2"]
    eps: float

    @property
    def name(self) -> str:
        names = {"standard": "vanilla", "fgsm-at": "FGSM", "pgd-at": "PGD"}
        return names[self.defense] + (f", {self.norm} {self.eps:g}" if self.eps else "")


@dataclass
class Errors:
    """Error over the epochs under PGD (clean for vanilla training), (seeds, measurements)."""

    test: Floats
    train: Floats

    @property
    def rise(self) -> Floats:
        """The final test error minus that in the middle of the training, (seeds,)."""
        return self.test[:, -1] - self.test[:, self.test.shape[1] // 2]

    @property
    def least(self) -> Floats:
        """The smallest test error of all measurements, (seeds,)."""
        return self.test.min(axis=1)

    @property
    def last_train(self) -> Floats:
        """The training error at the end, (seeds,)."""
        return self.train[:, -1]

    @property
    def gap(self) -> Floats:
        """The test error at the end minus the training error, (seeds,)."""
        return self.test[:, -1] - self.train[:, -1]


@registry.study("subsets")
@dataclass(frozen=True, kw_only=True)
class SubsetsStudy(TrainingStudy):
    """Adversarial overfitting by the difficulty of the training examples: the easiest, a random and the hardest third.

    Thesis, section 4.3.2, Figures 4.17 to 4.20: PGD, FGSM and vanilla training on class-balanced subsets, over eps and
    norms, and PGD training on growing sets of examples, the easiest first. The difficulty is that of a PGD training at
    the same eps (a vanilla one at eps 0), on all examples, with another seed. The thesis uses 10,000 of CIFAR-10's
    50,000 images and ResNet18, and selects the models of Figure 4.20 on a validation set; this study takes the smallest
    test error. A network that does not fit the hardest examples cannot overfit to them; in this case nothing is tested.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(12, 4.2))
        settings = [Setting("standard", "Linf", 0.0)]
        settings += [Setting("fgsm-at", "Linf", plan.eps["Linf"][0])] if plan.fgsm else []
        settings += [Setting("pgd-at", "Linf", eps) for eps in plan.eps["Linf"]]
        settings += [Setting("pgd-at", "L2", eps) for eps in plan.eps["L2"]]
        main = Setting("pgd-at", "Linf", plan.eps["Linf"][0])
        errors: dict[tuple[Setting, str], Errors] = {}
        more: dict[float, Errors] = {}
        trainings = plan.seeds * (len(settings) * len(SUBSETS) + len(plan.more))
        with Progress("subsets", trainings, "training") as progress:
            for setting in settings:
                task = task_of(self.dataset, self.data_dir, setting.norm, fits=True).first(plan.train, plan.test)
                orders = [
                    ranked(
                        task, setting.defense, setting.eps, seeds.derive(self.seed, "subsets", seed), plan.ranking,
                        attack_of(plan, setting),
                    )
                    for seed in range(plan.seeds)
                ]  # fmt: skip
                for name in SUBSETS:
                    rows = [first_of(each[name], task, plan.share) for each in orders]
                    errors[setting, name] = self.errors(plan, task, setting, rows)
                    progress.advance(plan.seeds, f"{setting.name}, {name}")
                if setting == main:
                    more[plan.share] = errors[setting, "easiest"]
                    for share in plan.more:
                        rows = [first_of(each["easiest"], task, share) for each in orders]
                        more[share] = self.errors(plan, task, setting, rows)
                        progress.advance(plan.seeds, f"{setting.name}, {share:.0%} easiest first")
        report(plan, errors, found)
        report_more_data(plan, main, more, found)
        found.draw = partial(draw, plan=plan, errors=errors, more=more, dataset=self.dataset)
        return found

    def errors(self, plan: Plan, task: Task, setting: Setting, rows: Sequence[Rows]) -> Errors:
        """Train on the rows of each seed, and return the errors."""
        runs = [self.errors_of_one(plan, task, setting, own, seed) for seed, own in enumerate(rows)]
        test, train = (np.array(part) for part in zip(*runs, strict=True))
        return Errors(test, train)

    def errors_of_one(
        self, plan: Plan, task: Task, setting: Setting, rows: Rows, seed: int
    ) -> tuple[list[float], list[float]]:
        """Test and training errors over the epochs of a training on some rows."""
        at = seeds.derive(self.seed, "subsets", seed)
        loop = task.loop(
            setting.defense, eps=setting.eps, seed=at, rows=rows, epochs=plan.epochs, **attack_of(plan, setting)
        )
        threat = task.threat(setting.eps) if setting.eps else None
        test_split, test, train = task.test_split(), list[float](), list[float]()
        for epoch in range(1, plan.epochs + 1):
            loop.run_epoch()
            if epoch % plan.every == 0:
                test.append(measure(loop.model, test_split, threat).error)
                train.append(measure(loop.model, loop.split, threat).error)
        return test, train


def ranked(
    task: Task, defense: str, eps: float, seed: int, epochs: int, settings: Mapping[str, Any]
) -> dict[str, Rows]:
    """The order in which each subset takes the rows, by the difficulty in a training of the defense."""
    at = seeds.derive(seed, "ranking")
    loop = task.loop(defense, eps=eps, seed=at, epochs=epochs, keep_losses=True, **settings)
    for _ in range(epochs):
        loop.run_epoch()
    difficulty = history_of(loop).difficulty
    shuffled = np.random.default_rng(at).permutation(len(difficulty))
    return {"easiest": np.argsort(-difficulty), "random": shuffled, "hardest": np.argsort(difficulty)}


def first_of(order: Rows, task: Task, share: float) -> Rows:
    """The first rows of an order: the same share of each class."""
    y = task.arrays.y_train
    return class_balanced(order, y, round(share * len(y)))


def attack_of(plan: Plan, setting: Setting) -> Mapping[str, Any]:
    return plan.attack if setting.defense == "pgd-at" else {}


def report(plan: Plan, errors: Mapping[tuple[Setting, str], Errors], found: Findings) -> None:
    rows = []
    for (setting, name), each in errors.items():
        values = each.train[:, -1].mean(), each.test.mean(axis=0).min(), each.test[:, -1].mean()
        rise = str(mean_interval(100 * each.rise))
        rows.append((setting.name, name, *(float(100 * value) for value in values), rise))
    header = ("training", "subset", "train error, %", "least test error", "last test error", "rise in the second half")
    count = round(plan.share * plan.train)
    under = f"errors under PGD-{ATTACK_STEPS}, or clean for vanilla training"
    title = f"Figures 4.17 to 4.19: {under}, about {count} examples, {plan.seeds} seeds"
    found.tables.append(Table(title, header, rows))
    settings = list(dict.fromkeys(setting for setting, _ in errors))
    for setting in settings:
        if setting.defense != "pgd-at":
            continue
        hard, easy = (errors[setting, name] for name in ("hardest", "easiest"))
        claim = f"Figure 4.17 ({setting.name}): the hardest third overfits, its robust test error rises"
        found.claims.append(
            if_fitted(claim, percent("rise in the second half", hard.rise), mean_interval(hard.rise), hard.last_train)
        )
        claim = f"Figure 4.17 ({setting.name}): the rise is larger on the hardest third than on the easiest"
        gap = hard.rise - easy.rise
        found.claims.append(if_fitted(claim, percent("by", gap), mean_interval(gap), hard.last_train))
        claim = f"Figure 4.17 ({setting.name}): the hardest third generalizes worse, its gap is larger"
        gap = hard.gap - easy.gap
        found.claims.append(if_fitted(claim, percent("by", gap), mean_interval(gap), hard.last_train))
    vanilla, main = settings[0], next(setting for setting in settings if setting.defense == "pgd-at")
    cost = {s: errors[s, "hardest"].test[:, -1] - errors[s, "easiest"].test[:, -1] for s in (vanilla, main)}
    difference = cost[main] - cost[vanilla]
    claim = "Figure 4.17: in vanilla training the difficulty of the examples matters less than in PGD training"
    text = percent("hardest minus easiest, last test error: PGD minus vanilla", difference)
    found.claims.append(if_fitted(claim, text, mean_interval(difference), errors[main, "hardest"].last_train))
    linf = sorted((s for s in settings if s.defense == "pgd-at" and s.norm == "Linf"), key=lambda s: s.eps)
    if len(linf) > 1:
        low, high = (errors[s, "hardest"].rise for s in (linf[0], linf[-1]))
        claim = f"Figure 4.18: the hardest third overfits more at eps {linf[-1].eps:g} than at {linf[0].eps:g}"
        fitted = errors[linf[-1], "hardest"].last_train
        found.claims.append(if_fitted(claim, percent("rise larger by", high - low), mean_interval(high - low), fitted))


def report_more_data(plan: Plan, main: Setting, more: Mapping[float, Errors], found: Findings) -> None:
    """Figure 4.20."""
    rows = [
        (f"{share:.0%}", *(float(100 * values.mean()) for values in (each.last_train, each.least, each.test[:, -1])))
        for share, each in more.items()
    ]
    header = ("examples, easiest first", "train error, %", "least test error", "last test error")
    found.tables.append(Table(f"Figure 4.20: {main.name} training on more and more examples", header, rows))
    few, whole = (more[share].least for share in (min(more), max(more)))
    claim = f"Figure 4.20: with selection, training on {max(more):.0%} is better than on the easiest {min(more):.0%}"
    text = percent("least test error lower by", few - whole)
    found.claims.append(effect_claim(claim, text, mean_interval(few - whole)))


def percent(what: str, values: Floats) -> str:
    interval: Interval = mean_interval(100 * values)
    return f"{what} {interval} %, {len(values)} seeds"


def draw(
    canvas: Figure,
    *,
    plan: Plan,
    errors: Mapping[tuple[Setting, str], Errors],
    more: Mapping[float, Errors],
    dataset: str,
) -> None:
    panels = {
        setting.name: {name: errors[setting, name] for name in SUBSETS}
        for setting in dict.fromkeys(setting for setting, _ in errors)
    }
    panels["easiest first"] = {f"{share:.0%}": each for share, each in more.items()}
    canvas.suptitle(f"Figures 4.17 to 4.20: {dataset}, error under PGD-{ATTACK_STEPS}; dashed: training subset")
    for panel, (title, curves) in enumerate(panels.items(), start=1):
        axes = canvas.add_subplot(1, len(panels), panel)
        for number, (name, each) in enumerate(curves.items()):
            epochs = plan.every * np.arange(1, each.test.shape[1] + 1)
            axes.plot(epochs, 100 * each.test.mean(axis=0), color=f"C{number}", linestyle="-", label=name)
            axes.plot(epochs, 100 * each.train.mean(axis=0), color=f"C{number}", linestyle="--")
        axes.set(title=title, xlabel="epoch", ylim=(-2, 102))
        if panel == 1:
            axes.set_ylabel("error, %")
        if panel in (1, len(panels)):
            axes.legend()
