"""`bench study hessian`: the curvature of the adversarial loss at its minima, over eps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.core import registry, seeds
from bench.core.contracts import Batch
from bench.core.progress import Progress
from bench.studies.adversarial_training.adversarial_runs import TrainingStudy, attacked, measure, task_of, trained
from bench.studies.adversarial_training.weight_space import (
    landscape,
    perturbation_cosine,
    random_direction,
    robust_loss,
    spectrum,
)
from bench.studies.claims import (
    Findings,
    Floats,
    Table,
    effect_claim,
    mean_interval,
    rank_correlation,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM_NETS = 5  # number of random networks, whose mean loss normalizes the eigenvalues


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiment. images: on which the Hessian is computed; lengths: a of Figure 4.7."""

    train: int
    images: int
    eps: tuple[float, ...]
    seeds: int
    epochs: int
    attack: Mapping[str, Any]
    top: int = 20
    lengths: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    runs: int = 4  # of Figure 4.7
    side: int = 7  # points of Figure 4.6 along a direction
    reach: float = 0.5  # of Figure 4.6


PLANS = {
    ("digits", True): Plan(
        900, 200, (0.0, 0.05, 0.1, 0.15), 3, 12, {"steps": 3, "alpha": "0.5eps"}, top=5, lengths=(0.1, 0.4), runs=1,
        side=5,
    ),
    ("digits", False): Plan(1437, 1437, (0.0, 0.05, 0.1, 0.15, 0.2), 10, 50, {"steps": 10}),
    ("mnist", True): Plan(
        10_000, 1000, (0.0, 0.1, 0.2, 0.3, 0.4), 5, 10, {"steps": 20, "alpha": "0.1eps"}, top=5, lengths=(0.1, 0.4),
        runs=1, side=5,
    ),
    ("mnist", False): Plan(60_000, 10_000, (0.0, 0.1, 0.2, 0.3, 0.4), 5, 100, {"steps": 50, "alpha": "0.05eps"}),
}  # fmt: skip


@dataclass
class Minima:
    """Of each training, (seeds, eps): eigenvalues (seeds, eps, k), the loss of random networks, the robust error, and
    whether it is a constant classifier; cosines (seeds, eps, lengths) along random and along top eigenvectors."""

    eigenvalues: Floats
    scale: Floats
    error: Floats
    constant: Floats
    random: Floats
    top: Floats
    landscapes: dict[float, Floats]

    @classmethod
    def empty(cls, plan: Plan) -> Minima:
        shape = (plan.seeds, len(plan.eps))
        scale, error, constant = (np.empty(shape) for _ in range(3))
        random, top = (np.full((*shape, len(plan.lengths)), np.nan) for _ in range(2))
        return cls(np.empty((*shape, plan.top)), scale, error, constant, random, top, {})


@registry.study("hessian")
@dataclass(frozen=True, kw_only=True)
class HessianStudy(TrainingStudy):
    """Minima of adversarial training over eps: Hessian eigenvalues, the loss around them, change of perturbations.

    Thesis, section 4.2.3, Figures 4.5 to 4.7. The eigenvalues are those of the loss at fixed PGD perturbations, raw and
    divided by the mean robust loss of random networks. The thesis uses LeNet of width 16 on MNIST and ResNet18 on
    CIFAR-10, and eps / 0.01 + 10 attack steps of 0.01; this study uses LeNet of width 2 on MNIST and a small CNN on
    digits, and 50 steps of eps / 20 at the paper's size. A training at a large eps may end in a constant classifier,
    whose loss is flat, so the claims leave those out and the table counts them.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(13, 7.5))
        task = task_of(self.dataset, self.data_dir).first(plan.train, plan.images)
        minima = Minima.empty(plan)
        with Progress("hessian", plan.seeds * len(plan.eps), "training") as progress:
            for row, column in np.ndindex(plan.seeds, len(plan.eps)):
                self.minimum(plan, task, minima, row, column)
                progress.advance(1, f"eps {plan.eps[column]:g}")
        report(plan, minima, found)
        found.draw = partial(draw, plan=plan, minima=minima, dataset=self.dataset)
        return found

    def minimum(self, plan: Plan, task: Any, minima: Minima, row: int, column: int) -> None:
        """Train once and measure."""
        eps, seed = plan.eps[column], seeds.derive(self.seed, "hessian", row)
        loop = task.loop("pgd-at", eps=eps, seed=seed, epochs=plan.epochs, **(plan.attack if eps else {}))
        model, threat = trained(loop), task.threat(eps) if eps else None
        batch: Batch = loop.split.take(torch.arange(min(plan.images, len(loop.split))))
        x = attacked(model, batch, threat, seed)
        top = spectrum(model, x, batch.y, plan.top, seed)
        minima.eigenvalues[row, column] = top.values
        with torch.no_grad():
            minima.constant[row, column] = len(model(x).argmax(dim=1).unique()) == 1
        minima.error[row, column] = measure(model, task.test_split(), threat).error
        fresh = [task.loop("standard", eps=0.0, seed=seeds.derive(seed, "random", k)).model for k in range(RANDOM_NETS)]
        losses = [robust_loss(net.eval(), batch, threat, k) for k, net in enumerate(fresh)]
        minima.scale[row, column] = float(np.mean(losses))
        if threat is not None:
            along = torch.from_numpy(top.vectors[:, 0].copy()).float()
            other = random_direction(len(along), seed)
            for k, length in enumerate(plan.lengths):
                minima.random[row, column, k] = perturbation_cosine(model, batch, threat, other, length, plan.runs)
                minima.top[row, column, k] = perturbation_cosine(model, batch, threat, along, length, plan.runs)
        if row == 0 and column in (0, len(plan.eps) - 1):
            steps = np.linspace(-plan.reach, plan.reach, plan.side).tolist()
            minima.landscapes[eps] = landscape(model, batch, threat, top.vectors, steps)


def report(plan: Plan, minima: Minima, found: Findings) -> None:
    largest, normalized = minima.eigenvalues[:, :, 0], minima.eigenvalues[:, :, 0] / minima.scale
    rows = [
        (eps, *(str(mean_interval(part[:, j])) for part in (largest, normalized, 100 * minima.error)),
         int(minima.constant[:, j].sum()))
        for j, eps in enumerate(plan.eps)
    ]  # fmt: skip
    header = ("eps", "largest eigenvalue", "over the random loss", "robust test error, %", "constant")
    found.tables.append(Table(f"Figure 4.5: Hessian at the minima, {plan.seeds} seeds", header, rows))
    kept = minima.constant == 0
    at = np.broadcast_to(np.array(plan.eps), kept.shape)[kept]
    for name, values in (("largest eigenvalue", largest), ("normalized largest eigenvalue", normalized)):
        claim = f"Figure 4.5: the {name} of the Hessian grows with eps"
        trend = rank_correlation(at, values[kept])
        text = f"rank correlation {trend}, {kept.sum()} trainings, {int((~kept).sum())} constant classifiers left out"
        found.claims.append(effect_claim(claim, text, trend))
    usable = kept & ~np.isnan(minima.top[:, :, 0])
    gap = np.array([
        (minima.random[row, usable[row], -1] - minima.top[row, usable[row], -1]).mean()
        for row in range(plan.seeds) if usable[row].any()
    ])  # fmt: skip
    rows = [
        (a, float(np.nanmean(minima.random[:, :, k])), float(np.nanmean(minima.top[:, :, k])))
        for k, a in enumerate(plan.lengths)
    ]
    title = "Figure 4.7: cosine of the perturbations at theta + a v and theta - a v, mean over eps > 0"
    found.tables.append(Table(title, ("a", "random v", "top eigenvector"), rows))
    if len(gap) >= 2:
        claim = "Figure 4.7: perturbations change more along the top eigenvector than along random directions"
        mean = mean_interval(gap)
        found.claims.append(
            effect_claim(claim, f"cosine lower by {mean} at a = {plan.lengths[-1]:g}, {len(gap)} seeds", mean)
        )


def draw(canvas: Figure, *, plan: Plan, minima: Minima, dataset: str) -> None:
    axes = canvas.add_subplot(2, 3, 1)
    for j, eps in enumerate(plan.eps):
        axes.plot(range(1, plan.top + 1), minima.eigenvalues[:, j].mean(axis=0), label=f"eps {eps:g}")
    axes.set(title=f"Figure 4.5: {dataset}, Linf", xlabel="number", ylabel="eigenvalue", yscale="symlog")
    axes.legend()
    axes = canvas.add_subplot(2, 3, 2)
    for name, values in (
        ("raw", minima.eigenvalues[:, :, 0]),
        ("normalized", minima.eigenvalues[:, :, 0] / minima.scale),
    ):
        axes.plot(plan.eps, values.mean(axis=0), marker="o", label=name)
    axes.set(title="Figure 4.5: largest eigenvalue", xlabel="eps", ylabel="eigenvalue", yscale="log")
    axes.legend()
    axes = canvas.add_subplot(2, 3, 3)
    for name, values in (("random v", minima.random), ("top eigenvector", minima.top)):
        axes.plot(plan.lengths, np.nanmean(values, axis=(0, 1)), marker="o", label=name)
    axes.set(title="Figure 4.7: at theta +- a v", xlabel="a", ylabel="cosine")
    axes.legend()
    steps = np.linspace(-plan.reach, plan.reach, plan.side)
    for panel, (eps, values) in enumerate(minima.landscapes.items(), start=4):
        axes = canvas.add_subplot(2, 3, panel)
        drawn = axes.contourf(steps, steps, values.T, levels=12, cmap="cividis")
        canvas.colorbar(drawn, ax=axes, label="robust loss, nats")
        axes.set(title=f"Figure 4.6: eps {eps:g}", xlabel="a_1", ylabel="a_2")
