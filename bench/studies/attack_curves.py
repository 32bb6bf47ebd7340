"""How robust accuracy falls with the passes that an attack spends, and with eps, from finished runs."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from bench.core import files, record_files, registry
from bench.core.errors import UserError
from bench.core.example_table import attack_specs, threat_of
from bench.studies.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Robust accuracy `accuracy[i]` at `at[i]`, and on to at[i + 1] where the curve is one of steps.

    at: passes of one example through the model (both ways), or eps in `norm`. marks: where the study's table reads it.
    """

    run: str
    attack: str
    norm: str
    against: Literal["passes", "eps"]
    at: Points
    accuracy: Points
    marks: Sequence[float]
    steps: bool = True

    def read(self, x: float) -> float:
        return float(self.accuracy[np.searchsorted(self.at, x, side="right") - 1])


@registry.study("attack-curves")
def attack_curves(*, runs: tuple[str, ...] = ("runs",), figure: str = "attack-curves.png") -> str:
    """Robust accuracy against the passes that an attack spends on an example, and against eps, from finished runs.

    runs: folders of runs, with commas between. With the columns `passes/SPEC`, an example is broken from the pass on at
    which it fell, and the curve ends where the last survivor was left. Over eps there are the minimum-norm attacks
    (`distance/SPEC`) and the attacks that ran at several eps. The points go to a .csv beside the figure.
    """
    drawn = new_figure(Path(figure), 11, 4.5)
    folders = record_files.find_records([Path(run) for run in runs])
    curves = [curve for folder in folders for curve in curves_of(folder)]
    panels = [kind for kind in ("passes", "eps") if any(curve.against == kind for curve in curves)]
    if not panels:
        raise UserError(
            f"no run in {', '.join(runs)} has passes, distances or several eps in its table; evaluate its "
            "weights.safetensors again with `bench eval`"
        )
    for number, kind in enumerate(panels, start=1):
        axes = drawn.add_subplot(1, len(panels), number)
        draw(axes, kind, [curve for curve in curves if curve.against == kind], with_runs=len(folders) > 1)
    drawn.savefig(figure)
    points = Path(figure).with_suffix(".csv")
    with points.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["run", "attack", "norm", "against", "at", "robust_acc"])
        for curve in curves:
            what = (curve.run, curve.attack, curve.norm, curve.against)
            rows.writerows([*what, at, acc] for at, acc in zip(curve.at, curve.accuracy, strict=True))
    lines = [
        (curve.run, curve.attack, curve.against, ", ".join(f"{100 * curve.read(x):.1f} at {x:g}" for x in curve.marks))
        for curve in curves
    ]
    table = tabulate(lines, ["run", "attack", "against", "robust accuracy, %"], tablefmt="github")
    return f"{table}\nfigure: {figure}\npoints: {points}"


def draw(axes: Axes, against: str, curves: Sequence[Curve], *, with_runs: bool) -> None:
    for curve in curves:
        label = f"{curve.attack}, {curve.norm}" if against == "eps" else curve.attack
        style: dict[str, Any] = {"drawstyle": "steps-post"} if curve.steps else {"marker": "o"}
        axes.plot(curve.at, 100 * curve.accuracy, label=f"{curve.run}: {label}" if with_runs else label, **style)
    axes.set(
        xlabel="passes of an example" if against == "passes" else "eps", ylabel="robust accuracy, %", ylim=(0, 100)
    )
    if against == "passes":
        axes.set_xscale("symlog", linthresh=1)  # from 0, where only the clean errors are gone
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def curves_of(folder: Path) -> Iterator[Curve]:
    """All curves of one run. CheckError where the run was changed after it was finished."""
    record, table = record_files.read_run(folder), files.read_arrays(folder / record_files.TABLE)
    run = "/".join(folder.parts[-2:])
    clean = table["clean"]
    at_several: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for spec in attack_specs(table):
        threat = threat_of(spec, record.threat)
        robust = table[f"robust/{spec}"]
        at_several[_without_eps(spec), threat.norm][threat.eps] = float(robust.mean())
        if f"passes/{spec}" in table:
            passes = table[f"passes/{spec}"]
            at, accuracy = _falling(passes[clean & ~robust], clean, end=passes[clean].max(initial=0))
            marks = [10.0**k for k in range(1, 7) if 10.0**k < at[-1]]
            yield Curve(run, spec, threat.norm, "passes", at, accuracy, [*marks, float(at[-1])])
        if f"distance/{spec}" in table:
            distance = table[f"distance/{spec}"].astype(np.float64)
            at, accuracy = _falling(distance[clean & np.isfinite(distance)], clean)
            eps = threat.eps
            yield Curve(run, spec, threat.norm, "eps", at, accuracy, [eps / 2, eps, 2 * eps])
    for (spec, norm), found in at_several.items():
        if len(found) > 1:
            eps, robust_acc = np.array(sorted(found.items())).T
            yield Curve(run, spec, norm, "eps", eps, robust_acc, eps.tolist(), steps=False)


def _without_eps(spec: str) -> str:
    return ":".join(part for part in spec.split(":") if not part.startswith("eps="))


def _falling(where: npt.NDArray[Any], clean: npt.NDArray[np.bool_], end: float = 0.0) -> tuple[Points, Points]:
    """Accuracy over x, from the clean one at 0, where examples fall at `where`; drawn on to `end`."""
    at, falls = np.unique(where, return_counts=True)
    standing = clean.sum() - np.cumsum(falls)
    at, standing = np.concatenate([[0], at]), np.concatenate([[clean.sum()], standing])
    if end > at[-1]:
        at, standing = np.append(at, end), np.append(standing, standing[-1])
    return at.astype(np.float64), standing / len(clean)
