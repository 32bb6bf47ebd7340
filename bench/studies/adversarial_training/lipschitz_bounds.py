"""`bench study lipschitz`: Lipschitz constants of networks trained on easy and hard examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.core import registry, seeds
from bench.core.progress import Progress
from bench.studies.adversarial_training.adversarial_runs import TrainingStudy, if_fitted, measure, task_of
from bench.studies.adversarial_training.seqlip import Constants, constants
from bench.studies.adversarial_training.subsets import SUBSETS, first_of, ranked
from bench.studies.claims import Findings, Floats, Table, effect_claim, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plan:
    """The sizes of the experiment. share: of the training examples in a subset; every: epochs between measurements."""

    train: int
    seeds: int
    ranking: int  # epochs of the training that ranks the examples
    epochs: int  # of a training on a subset
    every: int
    eps: tuple[float, ...]
    attack: Mapping[str, Any]
    share: float = 1 / 3


PLANS = {
    ("digits", True): Plan(720, 3, 6, 36, 18, (0.02, 0.06), {"steps": 2, "alpha": "0.75eps"}),
    ("digits", False): Plan(1437, 10, 30, 60, 6, (0.05, 0.1, 0.15), {"steps": 10}),
    ("mnist", True): Plan(3000, 3, 10, 40, 10, (0.05, 0.1), {"steps": 5, "alpha": "0.4eps"}),
    ("mnist", False): Plan(60_000, 3, 20, 60, 10, (0.1, 0.2, 0.3), {"steps": 10}),
}


@registry.study("lipschitz")
@dataclass(frozen=True, kw_only=True)
class LipschitzStudy(TrainingStudy):
    """Lipschitz constants of networks trained on the easiest, a random and the hardest third of the data, over eps.

    Thesis, section 4.3.4, Table 4.5 and Figure 4.22, the trend of Theorem 4.6. AutoLip is an upper bound of the L2
    constant, SeqLip (Virmaux and Scaman, 2018) an estimate of a smaller one. The perturbations are Linf, as in the left
    half of the table. The theorem is about networks that fit their training examples, so its claims are tested only
    where the robust training error is small. On digits, unlike in the table, the constant does not grow with eps.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(11, 4))
        task = task_of(self.dataset, self.data_dir, fits=True).first(plan.train, 100)
        shape = (2, len(plan.eps), len(SUBSETS), plan.seeds, plan.epochs // plan.every)
        values, errors = np.empty(shape), np.empty(shape[1:4])
        with Progress("lipschitz", plan.seeds * len(plan.eps) * len(SUBSETS), "training") as progress:
            for row, column in np.ndindex(len(plan.eps), plan.seeds):
                eps, seed = plan.eps[row], seeds.derive(self.seed, "lipschitz", column)
                orders = ranked(task, "pgd-at", eps, seed, plan.ranking, plan.attack)
                for k, name in enumerate(SUBSETS):
                    rows, epochs = first_of(orders[name], task, plan.share), plan.epochs
                    loop = task.loop("pgd-at", eps=eps, seed=seed, rows=rows, epochs=epochs, **plan.attack)
                    image, at = loop.split.take(loop.split.y[:1] * 0).x, 0
                    for epoch in range(1, epochs + 1):
                        loop.run_epoch()
                        if epoch % plan.every == 0:
                            values[:, row, k, column, at] = constants(loop.model, image, seed=seed)
                            at += 1
                    errors[row, k, column] = measure(loop.model, loop.split, task.threat(eps)).error
                    progress.advance(1, f"eps {eps:g}, {name}")
        report(plan, values, errors, found)
        found.draw = partial(draw, plan=plan, values=values, dataset=self.dataset)
        return found


def report(plan: Plan, values: Floats, errors: Floats, found: Findings) -> None:
    """values: (estimates, eps, subsets, seeds, measurements); errors: on the training subset, (eps, subsets, seeds)."""
    last = values[..., -1]
    for number, estimate in enumerate(Constants._fields):
        rows = [
            (name, *(str(mean_interval(last[number, row, k])) for row in range(len(plan.eps))))
            for k, name in enumerate(SUBSETS)
        ]
        title = f"Table 4.5: {estimate} at the end, PGD training, {plan.seeds} seeds"
        found.tables.append(Table(title, ("subset", *(f"Linf {eps:g}" for eps in plan.eps)), rows))
    percent = 100 * errors.mean(axis=2)
    shares = [(name, *map(float, percent[:, k])) for k, name in enumerate(SUBSETS)]
    header = ("subset", *(f"Linf {eps:g}" for eps in plan.eps))
    found.tables.append(Table("Robust error on the training subset at the end, %", header, shares))
    log = np.log10(last[Constants._fields.index("seqlip")])
    for row, eps in enumerate(plan.eps):
        gap = mean_interval(log[row, 2] - log[row, 0])
        claim = f"Table 4.5 (Linf {eps:g}): the constant is larger after training on the hardest third than the easiest"
        text = f"SeqLip 10^({gap}) times, {plan.seeds} seeds"
        found.claims.append(if_fitted(claim, text, gap, errors[row, [0, 2]]))
    growth = mean_interval((log[-1] - log[0]).mean(axis=0))
    claim = f"Table 4.5: the constant is larger at eps {plan.eps[-1]:g} than at {plan.eps[0]:g}"
    text = f"SeqLip 10^({growth}) times, mean over subsets"
    found.claims.append(if_fitted(claim, text, growth, errors[[0, -1]]))
    path = np.log10(values[Constants._fields.index("seqlip")])
    rise = mean_interval((path[..., -1] - path[..., 0]).mean(axis=(0, 1)))
    claim = "Figure 4.22: the constant grows during the training"
    found.claims.append(effect_claim(claim, f"SeqLip 10^({rise}) times from epoch {plan.every} to {plan.epochs}", rise))
    found.notes.append(
        f"SeqLip is {float((last[1] / last[0]).mean()):.2g} of AutoLip on average; it certifies nothing, because its "
        "maximum over masks is found by ascent."
    )


def draw(canvas: Figure, *, plan: Plan, values: Floats, dataset: str) -> None:
    epochs = plan.every * np.arange(1, values.shape[-1] + 1)
    canvas.suptitle(f"Figure 4.22: {dataset}, PGD training, mean of {plan.seeds} seeds")
    for panel, eps in enumerate(plan.eps, start=1):
        axes = canvas.add_subplot(1, len(plan.eps), panel)
        for number, estimate in enumerate(Constants._fields):
            for k, name in enumerate(SUBSETS):
                mean, line = values[number, panel - 1, k].mean(axis=0), ("-", "--")[number]
                axes.plot(epochs, mean, color=f"C{k}", linestyle=line, marker="o", label=f"{name}, {estimate}")
        axes.set(title=f"Linf {eps:g}", xlabel="epoch", ylabel="Lipschitz constant, L2", yscale="log")
        if panel == 1:
            axes.legend(fontsize="x-small")
