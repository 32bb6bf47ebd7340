"""`bench study curves`: loss and error over the epochs of finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.core import record_files, registry
from bench.core.errors import UserError
from bench.core.record_files import LOG
from bench.studies.attack_curves import Setting, name_runs
from bench.studies.claims import Claim, ClaimsStudy, Findings, Floats, Table, effect_claim, mean_interval
from bench.training.curves import KEYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOW = "train with `--set keep_curves=1000`, which logs the first 1,000 training and test examples after each epoch"
PANELS = ("clean_error", "robust_error", "clean_loss", "robust_loss")


class Curves(NamedTuple):
    """The epochs (E,) of one run, counted from 1, and the values (E,) of the KEYS that its log contains."""

    setting: Setting
    epochs: Floats
    values: Mapping[str, Floats]

    @property
    def defense(self) -> str:
        return self.setting.defense


@registry.study("curves")
@dataclass(frozen=True, kw_only=True)
class CurvesStudy(ClaimsStudy):
    """Learning curves of finished runs: train and test, clean and robust, loss and error; adversarial overfitting.

    Thesis, Figures 4.1, 4.24, 4.25 and 5.6. A run has curves if it was trained with `--set keep_curves=N`: each line of
    its log.jsonl then holds the loss and the error on the first N training and test examples, clean and under PGD-10.
    `seed` and `size` have no effect.
    """

    runs: tuple[str, ...] = ("runs",)  # run folders, or folders of them

    def findings(self) -> Findings:
        folders = record_files.find_records([Path(run) for run in self.runs])
        curves = {"/".join(folder.parts[-2:]): each for folder in folders if (each := curves_of(folder)) is not None}
        if not curves:
            raise UserError(f"no run in {', '.join(self.runs)} has curves in its {LOG}; {HOW}")
        found = Findings(inches=(12, 8))
        for key in [key for key in KEYS if key.startswith("test")]:
            rows = [
                (run, *(float(x) for x in (each.values[key][0], each.values[key].min(), each.values[key][-1])),
                 int(each.epochs[each.values[key].argmin()]))
                for run, each in curves.items() if key in each.values
            ]  # fmt: skip
            if rows:
                header = ("run", "first epoch", "least", "last epoch", "least in epoch")
                found.tables.append(Table(key.replace("_", ", "), header, rows))
        found.claims += overfitting(list(curves.values()))
        if left := len(folders) - len(curves):
            found.notes.append(f"{left} of {len(folders)} runs have no curves; {HOW}")
        found.draw = partial(draw, curves=curves)
        return found


def curves_of(folder: Path) -> Curves | None:
    """The curves of a run; None if its log has none, or it has no log. UserError if the log is not valid."""
    path = folder / LOG
    if not path.is_file():
        return None
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        keys = [key for key in KEYS if lines and all(key in line for line in lines)]
        values = {key: np.array([line[key] for line in lines], dtype=np.float64) for key in keys}
        epochs = np.array([line["epoch"] for line in lines], dtype=np.float64)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not the log of a training: {error}") from error
    if not keys:
        return None
    record = record_files.read_record(folder)
    setting = Setting(
        record.dataset, record.model, f"{record.threat.norm} {record.threat.eps:.3g}", record.defense,
        f"seed {record.seed}", f"{record.n_examples:,} examples",
    )  # fmt: skip
    return Curves(setting, epochs, values)


def overfitting(curves: Sequence[Curves]) -> list[Claim]:
    """Section 4.1, for each defense: the robust test error rises from its minimum to the last epoch; the gap grows.

    The minimum of a noisy curve is biased downwards, so the first claim compares the last third with the middle third.
    """
    claims = []
    for defense in dict.fromkeys(each.defense for each in curves):
        runs = [each.values for each in curves if each.defense == defense and "test_robust_error" in each.values]
        runs = [values for values in runs if len(values["test_robust_error"]) >= 3]
        if not runs:
            continue
        thirds = [[float(part.mean()) for part in np.array_split(v["test_robust_error"], 3)] for v in runs]
        gaps = [float(v["test_robust_error"][-1] - v["train_robust_error"][-1]) for v in runs]
        for name, claim, values in (
            ("rise", "the robust test error rises late in training (last third above the middle one)",
             [last - middle for _, middle, last in thirds]),
            ("gap", "there is a robust generalization gap (test error above training error at the end)", gaps),
        ):  # fmt: skip
            statement = f"Section 4.1, {defense}: {claim}"
            if len(values) < 2:
                text = f"{name} {100 * values[0]:.3g} %, one run"
                claims.append(Claim(statement, text, "not tested at this size"))
            else:
                effect = mean_interval(values)
                claims.append(effect_claim(statement, f"{name} {effect.times(100)} %, {len(values)} runs", effect))
    return claims


def draw(canvas: Figure, *, curves: Mapping[str, Curves]) -> None:
    """Four panels; training examples dashed, test examples solid."""
    title, names = name_runs({run: each.setting for run, each in curves.items()})
    canvas.suptitle(f"{title}; solid: test, dashed: train")
    for panel, name in enumerate(PANELS, start=1):
        axes = canvas.add_subplot(2, 2, panel)
        for number, (run, each) in enumerate(curves.items()):
            for split, line in (("test", "-"), ("train", "--")):
                if (values := each.values.get(f"{split}_{name}")) is not None:
                    scale = 100 if name.endswith("error") else 1
                    label = names[run] if split == "test" else None
                    axes.plot(each.epochs, scale * values, linestyle=line, color=f"C{number % 10}", label=label)
        unit = "%" if name.endswith("error") else "nats"
        axes.set(xlabel="epoch", ylabel=f"{name.replace('_', ' ')}, {unit}", title=name.replace("_", " "))
        if panel == 1 and any(names.values()):
            axes.legend()
