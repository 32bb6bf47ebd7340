"""`bench study eps-schedules`: figures 4.9, 4.10 and 4.14 of the thesis, schedules of eps and of the learning rate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from bench.core import registry, seeds
from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.runs.plan import Plan
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.study import ResumableStudy
from leaderboard.render import render
from leaderboard.significance import seeds_difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPS = 0.4
GROWTH = {
    "constant": {"eps_growth": "none"}, "cosine": {"eps_growth": "cosine", "eps_max": "1.5eps"},
    "linear": {"eps_growth": "linear", "eps_max": "2eps"},
}  # fmt: skip
WARM_UP = {"constant": GROWTH["constant"]} | {
    f"lr warm-up {share}": GROWTH["constant"] | {"lr_warm_up": str(share)} for share in (0.1, 0.25, 0.5)
} | {"cosine": GROWTH["cosine"]}  # fmt: skip
SCHEDULES = {"4.9": GROWTH, "4.10": WARM_UP, "4.14": GROWTH}
FIXED = {
    "optimizer": "adam", "schedule": "constant", "weight_decay": "0", "crop": "0", "flip": "false", "probe_every": "0",
    "layout": "channels_last",  # on CPUs, passes of a LeNet of width 2 take a third of the time
}  # fmt: skip
UNTRAINED = 0.8  # an error of about chance level or above
Errors = dict[str, dict[float, list[float]]]  # schedule -> learning rate or width -> the error of each seed


@registry.study("eps-schedules")
@dataclass(frozen=True, kw_only=True)
class EpsSchedulesStudy(ResumableStudy):
    """PGD error of MNIST LeNets that are trained with a constant, a cosine or a linear eps, at eps 0.4.

    Thesis, section 4.2.4 (Eq. 4.29), Adam at a constant learning rate. 4.9: learning rates at width 16. 4.10: the same
    with a constant eps and a warm-up of the learning rate, compared with the cosine eps; the lengths of the warm-up are
    our choice. 4.14: widths at the learning rate 1e-4. The figures have no numbers in the text. It trains for 100
    epochs, with 50 steps of 0.01 (`epochs=100`, `train=60000`, `steps=50`, `alpha=0.025eps`, `n_examples=10000`); the
    defaults are smaller. The step size follows eps as it grows. The weight decay is 0, because the text gives only that
    of CIFAR-10. Differences are tested as `bench compare` does, over seeds (t test).
    """

    of: Literal["4.9", "4.10", "4.14"] = "4.14"  # the figure
    values: tuple[float, ...] = ()  # learning rates (4.9, 4.10) or widths (4.14); none: those named in the study
    seeds: int = 5  # trainings of each setting
    epochs: int = 20  # epochs of each training
    train: int = 10_000  # number of training images, the first ones
    n_examples: int = 1000  # number of test images, the first ones
    steps: int = 20  # steps of the attacks, in training and after it
    alpha: str = "0.1eps"  # step size of the attacks
    data: str = "mnist"  # the data set
    figure: str | None = None  # file of the figure; none: no figure

    def run(self) -> str:
        for name in ("seeds", "epochs", "train", "n_examples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.figure is not None:
            check_figure(self.figure)
        values = self.values or ((2, 4, 8, 16) if self.of == "4.14" else (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3))
        schedules, errors = SCHEDULES[self.of], Errors()
        with Progress("eps-schedules", len(schedules) * len(values) * self.seeds, "training") as progress:
            for name, schedule in schedules.items():
                for value in values:
                    plan = self.planned(value, schedule)
                    found = errors.setdefault(name, {}).setdefault(value, [])
                    for seed in range(self.seeds):
                        model = self.trained(plan, seed)
                        found.append(pgd_error(model, plan, seed, f"pgd:steps={self.steps}:alpha={self.alpha}"))
                        progress.advance(1, f"{name} {value:g}")
        head = (
            f"figure {self.of}: error in percent under PGD-{self.steps}, eps {EPS}, {self.data}, {self.train} training "
            f"and {self.n_examples} test images, {self.epochs} epochs, {self.seeds} seeds (mean +- standard deviation)"
        )
        parts = [head, table_of(errors, self.abscissa), *compared(errors, self.abscissa, 1 / self.n_examples)]
        if self.figure is not None:
            with new_figure(self.figure, 6, 4.5) as canvas:
                draw(canvas.add_subplot(), errors, self.abscissa)
            parts.append(f"figure: {self.figure}")
        return "\n\n".join(parts)

    @property
    def abscissa(self) -> str:
        return "width" if self.of == "4.14" else "learning rate"

    def planned(self, value: float, schedule: Mapping[str, str]) -> Plan:
        """The training at one learning rate or width."""
        width, lr = (int(value), 1e-4) if self.of == "4.14" else (16, value)
        return self.plan(
            defense="pgd-at", dataset=f"{self.data}:train={self.train}", model=f"lenet:width={width}", norm="Linf",
            eps=[EPS], n_examples=self.n_examples,
            overrides={
                **FIXED, **schedule, "lr": repr(lr), "epochs": str(self.epochs), "steps": str(self.steps),
                "alpha": self.alpha,
            },
        )  # fmt: skip


def pgd_error(model: nn.Module, plan: Plan, seed: int, spec: str) -> float:
    """The share of test images that are misclassified or broken by an attack."""
    (planned,) = make_attacks([spec], plan.threat).values()
    test, correct = plan.test_split(), 0
    generator = seeds.generator(plan.device, seed, "eps-schedules")
    for batch in test.in_order(500):
        x_adv = planned.attack(model, batch, planned.threat, generator=generator)
        with torch.no_grad():
            correct += int((model(x_adv).argmax(dim=1) == batch.y).sum())
    return 1 - correct / len(test)


def table_of(errors: Errors, abscissa: str) -> str:
    values = list(next(iter(errors.values())))
    rows = [[name, *(spread(by_value[value]) for value in values)] for name, by_value in errors.items()]
    return render(["schedule", *(f"{abscissa} {value:g}" for value in values)], rows, align="l" + "r" * len(values))


def spread(errors: Sequence[float]) -> str:
    deviation = f" +- {100 * statistics.stdev(errors):.1f}" if len(errors) > 1 else ""
    return f"{100 * statistics.fmean(errors):.1f}{deviation}"


def compared(errors: Errors, abscissa: str, grain: float) -> list[str]:
    """Compare each schedule with a constant eps, and list the settings that do not train."""
    lines = []
    for name, by_value in errors.items():
        for value, found in by_value.items():
            constant = errors["constant"][value]
            if statistics.fmean(found) > UNTRAINED:
                lines.append(f"{name}, {abscissa} {value:g}: does not train")
            if name == "constant" or len(found) < 2:
                continue
            test = seeds_difference(found, constant, grain)
            assert test.low is not None
            assert test.high is not None
            lines.append(
                f"{name} - constant, {abscissa} {value:g}: {100 * test.difference:+.1f} "
                f"[{100 * test.low:+.1f}, {100 * test.high:+.1f}], p = {test.p:.2g}"
            )
    return ["\n".join(lines)] if lines else []


def draw(axes: Axes, errors: Errors, abscissa: str) -> None:
    for name, by_value in errors.items():
        means = [100 * statistics.fmean(found) for found in by_value.values()]
        bars = [100 * statistics.stdev(found) if len(found) > 1 else 0.0 for found in by_value.values()]
        axes.errorbar(list(by_value), means, yerr=bars, label=name, capsize=3, marker="o")
    axes.set(xscale="log", xlabel=abscissa, ylabel="PGD error, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
