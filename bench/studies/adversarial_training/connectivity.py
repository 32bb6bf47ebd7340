"""`bench study connectivity`: Bezier curves between minima of adversarial training, over eps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.studies.adversarial_training.adversarial_runs import CPU, Task, TrainingStudy, measure, task_of, trained
from bench.studies.adversarial_training.weight_space import Curve
from bench.studies.claims import Findings, Floats, Table, effect_claim, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiment. steps, lr: of the training of a curve; points: of it that are measured, on `test`
    images of each split."""

    train: int
    test: int
    eps: tuple[float, ...]
    pairs: int
    epochs: int
    steps: int
    attack: Mapping[str, Any]
    points: int = 9
    order: int = 2
    lr: float = 5e-3


PLANS = {
    ("digits", True): Plan(480, 120, (0.0, 0.15), 3, 10, 60, {"steps": 3, "alpha": "0.5eps"}, points=5),
    ("digits", False): Plan(1437, 360, (0.0, 0.05, 0.1, 0.15, 0.2), 10, 60, 3000, {"steps": 10}),
    ("mnist", True): Plan(5000, 1000, (0.0, 0.1, 0.2, 0.3), 3, 8, 500, {"steps": 10}),
    ("mnist", False): Plan(
        60_000, 10_000, (0.0, 0.1, 0.2, 0.3, 0.4), 5, 100, 20_000, {"steps": 50, "alpha": "0.05eps"}
    ),
}  # fmt: skip


@dataclass
class Along:
    """Robust training loss and robust test error along the curve of each pair at one eps, (pairs, points)."""

    loss: Floats
    error: Floats

    @property
    def barrier(self) -> Floats:
        """The largest loss on the curve minus that of the worse end, (pairs,)."""
        return self.loss.max(axis=1) - np.maximum(self.loss[:, 0], self.loss[:, -1])


@registry.study("connectivity")
@dataclass(frozen=True, kw_only=True)
class ConnectivityStudy(TrainingStudy):
    """Whether a flat curve of weights joins two minima of adversarial training, over eps.

    Thesis, section 4.2.3, Eq. 4.28 and Figure 4.8: curves of order 2 between networks of two seeds (4 on CIFAR-10),
    trained on the robust loss at a random point of the curve. Batch norm statistics are estimated again at each
    measured point. The networks for digits and MNIST (LeNet of width 2) have no batch norm.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(9, 4))
        task = task_of(self.dataset, self.data_dir).first(plan.train, plan.test)
        curves: dict[float, Along] = {}
        with Progress("connectivity", plan.pairs * len(plan.eps), "curve") as progress:
            for eps in plan.eps:
                loss, error = (np.empty((plan.pairs, plan.points)) for _ in range(2))
                for pair in range(plan.pairs):
                    loss[pair], error[pair] = along_curve(plan, task, eps, seeds.derive(self.seed, "connect", pair))
                    progress.advance(1, f"eps {eps:g}")
                curves[eps] = Along(loss, error)
        report(plan, curves, found)
        found.draw = partial(draw, plan=plan, curves=curves, dataset=self.dataset)
        return found


def along_curve(plan: Plan, task: Task, eps: float, seed: int) -> tuple[Floats, Floats]:
    """Train two networks and a curve between them; (loss, error) at its points."""
    loops = [
        task.loop("pgd-at", eps=eps, seed=seeds.derive(seed, end), epochs=plan.epochs, **(plan.attack if eps else {}))
        for end in range(2)
    ]
    curve = Curve(trained(loops[0]), trained(loops[1]), plan.order)
    threat, train = task.threat(eps) if eps else None, loops[0].split
    generator = seeds.generator(CPU, seed, "curve")
    curve.train(
        lambda: train.shuffled(64, generator), threat,
        steps=plan.steps, attack_steps=plan.attack["steps"], lr=plan.lr, seed=seed,
    )  # fmt: skip
    images, few = train.take(torch.arange(len(train))).x, task.train_split(slice(plan.test))
    models = [curve.at(float(t), images) for t in np.linspace(0, 1, plan.points)]
    loss = [float(measure(model, few, threat).loss.mean()) for model in models]
    return np.array(loss), np.array([measure(model, task.test_split(), threat).error for model in models])


def report(plan: Plan, curves: Mapping[float, Along], found: Findings) -> None:
    rows = []
    for eps, each in curves.items():
        ends = float(each.loss[:, [0, -1]].mean()), float(100 * each.error[:, [0, -1]].mean())
        rows.append((eps, str(mean_interval(each.barrier)), *ends, float(100 * each.error.max(axis=1).mean())))
    header = ("eps", "barrier, nats", "loss at the ends", "test error at the ends, %", "largest test error, %")
    title = f"Figure 4.8: curves of order {plan.order}, robust training loss and test error, {plan.pairs} pairs"
    found.tables.append(Table(title, header, rows))
    barriers = np.stack([each.barrier for each in curves.values()], axis=1)
    higher = mean_interval(barriers[:, -1] - barriers[:, 0])
    claim = "Figure 4.8: the curves between minima are less flat at a larger eps"
    text = f"barrier at eps {plan.eps[-1]:g} higher than at {plan.eps[0]:g} by {higher} nats, {plan.pairs} pairs"
    found.claims.append(effect_claim(claim, text, higher))
    flat = mean_interval(barriers[:, 0])
    claim = "Figure 4.8: a flat curve joins minima of vanilla training (barrier below 0.1 nats)"
    found.claims.append(effect_claim(claim, f"barrier {flat}, {plan.pairs} pairs", mean_interval(0.1 - barriers[:, 0])))


def draw(canvas: Figure, *, plan: Plan, curves: Mapping[float, Along], dataset: str) -> None:
    t = np.linspace(0, 1, plan.points)
    canvas.suptitle(f"Figure 4.8: {dataset}, Linf, Bezier curves of order {plan.order}, mean of {plan.pairs} pairs")
    for panel, (name, scale) in enumerate((("loss", 1), ("error", 100)), start=1):
        axes = canvas.add_subplot(1, 2, panel)
        for eps, each in curves.items():
            axes.plot(t, scale * getattr(each, name).mean(axis=0), label=f"eps {eps:g}")
        axes.set(xlabel="t", ylabel="robust training loss, nats" if name == "loss" else "robust test error, %")
        axes.legend()
