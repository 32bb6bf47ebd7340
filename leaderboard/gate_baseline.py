"""The baseline of the gate: DIR/RECIPE/SEED/ holds a record and its table, DIR/CHANGES.md the reasons for updates."""

import filecmp
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.core.counts import counted
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Flags, Table, attack_specs, certifier_specs, corrupted, own_specs, worst_case
from bench.core.files import read_arrays, sha256
from bench.core.folders import changed_in_one_step, recovered
from bench.core.record_checks import check_record
from bench.core.record_files import RECORD, TABLE, check_distinct_seeds, find_records, read_record, records_below
from bench.core.records import Record
from leaderboard.render import percent, threat_name

CHANGES = "CHANGES.md"
LEAST = 5  # minimum number of seeds of a baseline; their standard deviation is the reference


class Recipe(NamedTuple):
    """The settings that compared runs share; their seeds and other settings may differ."""

    board: str  # suite, or data set if there is no suite
    defense: str
    model: str
    threat: str

    def __str__(self) -> str:
        return f"{self.defense} on {self.board}, {self.model}, {self.threat}"

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.+-]+", "_", "-".join(self), flags=re.ASCII)


@dataclass(frozen=True)
class GateRun:
    """A finished run: its record and the table that the record was computed from."""

    folder: Path
    record: Record
    table: Table

    @property
    def recipe(self) -> Recipe:
        r = self.record
        return Recipe(r.suite or Path(r.dataset).stem, r.defense, r.model, threat_name(r.threat))

    @property
    def weights(self) -> str:
        return self.record.artifacts["weights"].sha256

    @cached_property
    def accuracies(self) -> dict[str, Flags]:
        """Accuracies by name, each as flags of the examples that count."""
        flags: dict[str, Flags] = {"clean": self.table["clean"]}
        flags |= {spec: self.table[f"robust/{spec}"] for spec in attack_specs(self.table)}
        if len(own_specs(self.table)) > 1:
            flags["worst of all attacks"] = worst_case(self.table)
        if len(specs := attack_specs(self.table)) > len(own_specs(self.table)):
            flags["union of all threats"] = worst_case(self.table, specs)
        flags |= {f"certified by {spec}": self.table[f"certified/{spec}"] for spec in certifier_specs(self.table)}
        if "status" in self.table:
            flags["bracket, certified"] = self.table["status"] == "certified"
            flags["bracket, attacked"] = self.table["status"] != "broken"
        for name, severities in corrupted(self.table).items():
            flags |= {f"{name}, severity {severity}": each for severity, each in enumerate(severities, 1)}
        return flags


Groups = dict[Recipe, list[GateRun]]


def read_runs(paths: Sequence[Path], configs: Sequence[str] = ()) -> Groups:
    """The runs at or below `paths` by recipe, in the order of their seeds. Weights are not needed.

    configs: prefixes of config hashes, which select the runs of a recipe that has runs with several settings.
    CheckError if a record does not follow from its table; UserError if there is no record, if a seed of a recipe occurs
    twice, if a recipe has several settings and none is selected, or if a hash selects nothing.
    """
    groups: Groups = {}
    for run in map(_read, find_records(paths, strict=True)):
        groups.setdefault(run.recipe, []).append(run)
    hashes = {run.record.config_hash for group in groups.values() for run in group}
    for config in configs:
        if not any(one.startswith(config) for one in hashes):
            raise UserError(f"no run has the config hash {config}; the runs have {', '.join(sorted(hashes))}")
    return {recipe: _of_one_config(recipe, group, configs) for recipe, group in groups.items()}


def read_baseline(baseline: Path) -> Groups:
    """Finish an interrupted update, and read the runs of a baseline by recipe.

    UserError if there is no baseline; raises the errors of read_runs.
    """
    if not records_below(recovered(baseline)):
        raise UserError(f"there is no baseline in {baseline}; create it from the new runs with --update REASON")
    return read_runs([baseline])


def _of_one_config(recipe: Recipe, group: Sequence[GateRun], configs: Sequence[str]) -> list[GateRun]:
    chosen = [run for run in group if run.record.config_hash.startswith(tuple(configs))] or group
    by_config = {run.record.config_hash: run.folder for run in chosen}
    if len(by_config) > 1:
        found = ", ".join(f"{config} ({folder})" for config, folder in by_config.items())
        raise UserError(f"{recipe} has runs with several settings: {found}; choose one with --config HASH")
    check_distinct_seeds([run.record for run in chosen], [run.folder for run in chosen], str(recipe))
    return sorted(chosen, key=lambda run: run.record.seed)


def _read(folder: Path) -> GateRun:
    record = read_record(folder)
    try:
        table = read_arrays(folder / TABLE)
        check_record(record, table)
        for name in ("examples", "weights"):
            if name not in record.artifacts:
                raise UserError(f"its record does not name its {name}")
        if sha256(folder / TABLE) != record.artifacts["examples"].sha256:
            raise UserError(f"its {TABLE} is not the one that the record names")
    except UserError as error:
        raise CheckError(f"{folder} was changed after it was finished: {error}; run it again") from error
    return GateRun(folder, record, table)


def update_baseline(baseline: Path, runs: Sequence[Path], reason: str, configs: Sequence[str] = ()) -> str:
    """Replace the runs of the baseline by new runs of the same recipes, in one step; returns the entry of CHANGES.md.

    UserError before anything is written: without a reason, with too few seeds of a trained recipe, or if a folder of
    the baseline holds other files than a record and its table.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise UserError("--update needs a reason, which is stored with the numbers: --update 'PGD starts at random'")
    new = read_runs(runs, configs)
    old = read_baseline(baseline) if records_below(recovered(baseline)) else {}
    _check_update(baseline, old, new)
    if all(_same_runs(old.get(recipe, []), group) for recipe, group in new.items()):
        return f"{baseline} has these runs already; nothing was changed"
    lines = [
        f"- {recipe}, {counted(len(group), 'seed')}: {_change(old.get(recipe, []), group)}"
        for recipe, group in new.items()
    ]
    entry = "\n".join([f"## {time.strftime('%Y-%m-%d', time.gmtime())}: {reason}", "", *lines])
    with changed_in_one_step(baseline) as part:
        for recipe, group in new.items():
            for run in group:
                home = part / recipe.folder / str(run.record.seed)
                home.mkdir(parents=True)
                for name in (TABLE, RECORD):
                    shutil.copyfile(run.folder / name, home / name)
        path = baseline / CHANGES
        before = path.read_text(encoding="utf-8") if path.exists() else "# Changes of the baseline\n"
        (part / CHANGES).write_text(f"{before}\n{entry}\n", encoding="utf-8")
    return entry


def _same_runs(old: Sequence[GateRun], new: Sequence[GateRun]) -> bool:
    pairs = [(a.folder / name, b.folder / name) for a, b in zip(old, new, strict=False) for name in (TABLE, RECORD)]
    return len(old) == len(new) and all(filecmp.cmp(*pair, shallow=False) for pair in pairs)


def _check_update(baseline: Path, old: Groups, new: Mapping[Recipe, Sequence[GateRun]]) -> None:
    for recipe, group in new.items():
        if group[0].record.training is not None and len(group) < LEAST:
            raise UserError(
                f"{recipe} has {counted(len(group), 'seed')}; a baseline needs at least {LEAST}: --seeds 0,1,2,3,4"
            )
        for run in old.get(recipe, []):
            if more := {path.name for path in run.folder.iterdir()} - {RECORD, TABLE}:
                raise UserError(f"{run.folder} holds {min(more)}, so it is not a baseline; use its own folder")
        for run in group:
            if baseline.resolve() in run.folder.resolve().parents:
                raise UserError(f"{run.folder} is in the baseline already; give the new runs")
        if others := _beside(baseline / recipe.folder, old.get(recipe, [])):
            raise UserError(f"{others[0]} is not a run of the baseline's {recipe}; move it elsewhere")
    if len({recipe.folder for recipe in old | dict(new)}) < len(old | dict(new)):
        raise UserError("the folders of two recipes would have the same name; rename one of the recipes")


def _beside(home: Path, runs: Sequence[GateRun]) -> list[Path]:
    """The entries of a recipe's folder in the baseline that are not these runs, and the runs that lie elsewhere."""
    in_home, folders = set(home.iterdir()) if home.is_dir() else set(), {run.folder for run in runs}
    return sorted(in_home ^ folders)


def _change(old: Sequence[GateRun], new: Sequence[GateRun]) -> str:
    """The mean over seeds of each accuracy, before and after."""
    before, after = _means(old), _means(new)
    return ", ".join(
        f"{what} {f'{percent(before[what])} -> ' if what in before else ''}{percent(mean)}"
        for what, mean in after.items()
    )


def _means(runs: Sequence[GateRun]) -> dict[str, float]:
    """The mean over seeds of each accuracy that all seeds have."""
    names = [name for name in runs[0].accuracies if all(name in run.accuracies for run in runs)] if runs else []
    return {name: float(np.mean([run.accuracies[name].mean() for run in runs])) for name in names}
