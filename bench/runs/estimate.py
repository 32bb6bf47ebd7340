"""Estimates the work of a run, in passes of one example through the model: `bench sweep --dry-run`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench.core.errors import UserError
from bench.core.record_files import read_record, records_below
from bench.core.records import Record
from bench.datasets.split import Split, training_rows
from bench.runs.plan import Plan
from bench.training.loop import Loop

EXAMPLES = 16  # number of examples for measuring a training step


@dataclass(frozen=True)
class EstimatedPasses:
    """Passes of the training and of the evaluation. unknown: parts of the evaluation that are not included.

    Certifiers are not counted: bounds use the weights without a pass.
    """

    training: float
    evaluation: float
    unknown: tuple[str, ...] = ()


def estimate(plan: Plan, records: Sequence[Record]) -> EstimatedPasses:
    """Measure a training step in the middle, on a few examples, and take the evaluation from finished runs (`records`).

    The passes of an attack depend on how soon it breaks an example. They are the mean over the runs of the same suite
    and defense, else of the same defense, else of all runs with this attack.
    """
    parts: dict[str, float | None] = {spec: _mean(_attacks(records, spec), plan) for spec in plan.attacks}
    if plan.bracket is not None:
        parts["bracket"] = _mean(_brackets(records), plan)
    known = sum(rate for rate in parts.values() if rate is not None)
    return EstimatedPasses(
        training_passes(plan),
        plan.config.n_examples * known,
        tuple(name for name, rate in parts.items() if rate is None),
    )


def training_passes(plan: Plan) -> float:
    """The training passes of a plan; 0 for existing weights, nan if the defense cannot make a step this small."""
    if plan.defense is None or plan.loaded is not None:
        return 0.0
    config = plan.defense.config
    rows, _ = training_rows(plan.arrays, config)
    few = rows[:EXAMPLES]
    split = Split.training(plan.arrays, config, plan.device, few)
    try:
        loop = Loop(plan.new_model(0), plan.defense, split, plan.threat, seed=0)
        loop.epoch = loop.epochs // 2
        loop.steps_done = loop.epoch * loop.steps_per_epoch
        loop.run_epoch()
    except UserError:
        return math.nan
    made = loop.passes.forwards + loop.passes.backwards
    return made / len(few) * len(rows) * config.epochs


def finished_records(folders: Iterable[Path]) -> list[Record]:
    """The records at or below some folders; those that cannot be read are left out, because this is an estimate."""
    records = []
    for folder in (below for each in folders for below in records_below(each)):
        try:
            records.append(read_record(folder))
        except UserError:
            continue
    return records


def _attacks(records: Sequence[Record], spec: str) -> list[tuple[Record, float]]:
    found = [(record, record.attacks[spec]) for record in records if spec in record.attacks]
    return [(record, (cost.forwards + cost.backwards) / record.n_examples) for record, cost in found]


def _brackets(records: Sequence[Record]) -> list[tuple[Record, float]]:
    found = [(record, record.bracket.stages.values()) for record in records if record.bracket is not None]
    return [(record, sum(s.forwards + s.backwards for s in stages) / record.n_examples) for record, stages in found]


def _mean(rates: Sequence[tuple[Record, float]], plan: Plan) -> float | None:
    same = [(record, rate) for record, rate in rates if record.defense == plan.name]
    nearest = [(record, rate) for record, rate in same if record.suite == plan.config.suite]
    for chosen in (nearest, same, rates):
        if chosen:
            return fmean(rate for _, rate in chosen)
    return None
