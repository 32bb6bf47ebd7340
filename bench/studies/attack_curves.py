"""`bench study attack-curves`: robust accuracy against passes and against eps, from finished runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core import files, record_files, registry
from bench.core.errors import UserError
from bench.core.example_table import attack_specs, threat_of
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.study import Study
from leaderboard.render import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = npt.NDArray[np.float64]


class Setting(NamedTuple):
    """The setting of a run in words: data set, model, threat model, defense, seed, number of examples."""

    dataset: str
    model: str
    threat: str
    defense: str
    seed: str
    examples: str


@dataclass(frozen=True)
class AccuracyCurve:
    """Robust accuracy `accuracy[i]` at `x[i]`; a step function is constant from x[i] to x[i + 1].

    x: forward and backward passes per example, or eps in `norm`. table_points: the x values shown in the study's table.
    """

    run: str
    setting: Setting
    attack: str
    norm: str
    against: Literal["passes", "eps"]
    x: Points
    accuracy: Points
    table_points: Sequence[float]
    steps: bool = True

    def read(self, x: float) -> float:
        return float(self.accuracy[np.searchsorted(self.x, x, side="right") - 1])


@registry.study("attack-curves")
@dataclass(frozen=True, kw_only=True)
class AttackCurvesStudy(Study):
    """Robust accuracy against the passes that an attack spends on an example, and against eps, from finished runs.

    Curves over passes need the columns `passes/SPEC`: an example counts as broken from the pass that broke it, and
    the curve ends at the last pass spent on an example that stayed robust. Curves over eps are drawn for minimum-norm
    attacks (`distance/SPEC`) and for attacks that ran at several eps.
    """

    runs: tuple[str, ...] = ("runs",)  # run folders, or folders of them
    figure: str = "attack-curves.png"  # file of the figure; a .csv of the points is written beside it

    def run(self) -> str:
        check_figure(self.figure)
        folders = record_files.find_records([Path(run) for run in self.runs])
        curves = [curve for folder in folders for curve in curves_of(folder)]
        panels = [kind for kind in ("passes", "eps") if any(curve.against == kind for curve in curves)]
        if not panels:
            raise UserError(
                f"no run in {', '.join(self.runs)} has passes, distances or several eps in its table; evaluate its "
                "weights.safetensors again with `bench eval`"
            )
        title, names = name_runs({curve.run: curve.setting for curve in curves})
        with new_figure(self.figure, 11, 4.5) as canvas:
            canvas.suptitle(title)
            for number, kind in enumerate(panels, start=1):
                axes = canvas.add_subplot(1, len(panels), number)
                draw(axes, kind, [curve for curve in curves if curve.against == kind], names)
        points = Path(self.figure).with_suffix(".csv")
        rows = [
            (curve.run, curve.attack, curve.norm, curve.against, x, accuracy)
            for curve in curves
            for x, accuracy in zip(curve.x, curve.accuracy, strict=True)
        ]
        text = render(["run", "attack", "norm", "against", "at", "robust_acc"], rows, "csv")
        points.write_text(f"{text}\n", encoding="utf-8")
        lines = [
            (c.run, c.attack, c.against, ", ".join(f"{100 * c.read(x):.1f} at {x:g}" for x in c.table_points))
            for c in curves
        ]
        table = render(["run", "attack", "against", "robust accuracy, %"], lines)
        return f"{table}\nfigure: {self.figure}\npoints: {points}"


def name_runs(settings: Mapping[str, Setting]) -> tuple[str, dict[str, str]]:
    """The settings that all runs share, for a title, and those in which each run differs, for a legend.

    settings: by run. Runs with equal settings are numbered.
    """
    common = [values[0] if len(set(values)) == 1 else None for values in zip(*settings.values(), strict=True)]
    names = {
        run: ", ".join(value for value, shared in zip(setting, common, strict=True) if shared is None)
        for run, setting in settings.items()
    }
    for name, times in Counter(names.values()).items():
        if times > 1:
            equal = [run for run in names if names[run] == name]
            names |= {run: f"{name} ({number})".strip() for number, run in enumerate(equal, start=1)}
    return ", ".join(value for value in common if value is not None), names


def draw(axes: Axes, against: str, curves: Sequence[AccuracyCurve], names: Mapping[str, str]) -> None:
    """names: of the runs; empty if there is only one."""
    for curve in curves:
        label = f"{curve.attack}, {curve.norm}" if against == "eps" else curve.attack
        style: dict[str, Any] = {"drawstyle": "steps-post"} if curve.steps else {"marker": "o"}
        words = [word for word in (names[curve.run], label) if word]
        axes.plot(curve.x, 100 * curve.accuracy, label=": ".join(words), **style)
    axes.set(
        xlabel="passes of an example" if against == "passes" else "eps", ylabel="robust accuracy, %", ylim=(0, 100)
    )
    if against == "passes":
        axes.set_xscale("symlog", linthresh=1)  # includes 0, the clean accuracy
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()


def curves_of(folder: Path) -> Iterator[AccuracyCurve]:
    """All curves of one run. CheckError if the run was changed after it finished."""
    record, table = record_files.read_run(folder), files.read_arrays(folder / record_files.TABLE)
    run = "/".join(folder.parts[-2:])
    setting = Setting(
        record.dataset, record.model, f"{record.threat.norm} {record.threat.eps:.3g}", record.defense,
        f"seed {record.seed}", f"{record.n_examples:,} examples",
    )  # fmt: skip
    clean = table["clean"]
    accuracy_by_eps: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for spec in attack_specs(table):
        threat = threat_of(spec, record.threat)
        robust = table[f"robust/{spec}"]
        accuracy_by_eps[_without_eps(spec), threat.norm][threat.eps] = float(robust.mean())
        if f"passes/{spec}" in table:
            passes = table[f"passes/{spec}"]
            x, accuracy = _step_curve(passes[clean & ~robust], clean, end=passes[clean].max(initial=0))
            powers = [10.0**k for k in range(1, 7) if 10.0**k < x[-1]]
            yield AccuracyCurve(run, setting, spec, threat.norm, "passes", x, accuracy, [*powers, float(x[-1])])
        if f"distance/{spec}" in table:
            distance = table[f"distance/{spec}"].astype(np.float64)
            x, accuracy = _step_curve(distance[clean & np.isfinite(distance)], clean)
            eps = threat.eps
            yield AccuracyCurve(run, setting, spec, threat.norm, "eps", x, accuracy, [eps / 2, eps, 2 * eps])
    for (spec, norm), by_eps in accuracy_by_eps.items():
        if len(by_eps) > 1:
            x, accuracy = np.array(sorted(by_eps.items())).T
            yield AccuracyCurve(run, setting, spec, norm, "eps", x, accuracy, x.tolist(), steps=False)


def _without_eps(spec: str) -> str:
    return ":".join(part for part in spec.split(":") if not part.startswith("eps="))


def _step_curve(broken_at: npt.NDArray[Any], clean: npt.NDArray[np.bool_], end: float = 0.0) -> tuple[Points, Points]:
    """(x, accuracy): the clean accuracy at x = 0; it drops where examples are broken. Extended to `end`."""
    x, counts = np.unique(broken_at, return_counts=True)
    robust = clean.sum() - np.cumsum(counts)
    x, robust = np.concatenate([[0], x]), np.concatenate([[clean.sum()], robust])
    if end > x[-1]:
        x, robust = np.append(x, end), np.append(robust, robust[-1])
    return x.astype(np.float64), robust / len(clean)
