"""Trains the model of a run in its own folder, OUT/trainings/LABEL-HASH/SEED, which all evaluations share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from bench.core import files, sealed_json
from bench.core.config import TrainingConfig, content_hash
from bench.core.errors import UserError
from bench.core.failures import failures_of
from bench.core.opened_files import record_opened_files
from bench.core.progress import Progress
from bench.core.record_files import LOG, WEIGHTS
from bench.core.records import Training
from bench.datasets.split import Split, training_rows
from bench.runs.processes import announce
from bench.training.checkpoints import CHECKPOINT, save_weights
from bench.training.curves import make_curves
from bench.training.histories import save_history
from bench.training.loop import Loop
from bench.training.probe import make_probe
from bench.training.rebuild import load_weights

if TYPE_CHECKING:
    from typing import SupportsFloat

    from torch import nn

    from bench.runs.loggers import RunLogger
    from bench.runs.plan import Plan
    from bench.training.loop import Report

FINISHED = "training.json"


class FinishedTraining(msgspec.Struct, frozen=True):
    """training.json: the cost of a finished training, and the hashes of its weights and of the files that it read."""

    identity: str  # see identity_of
    weights: str  # SHA-256
    cost: Training
    read: dict[str, str] = {}  # path -> SHA-256, of files that the defense's own code opened


def identity_of(plan: Plan, seed: int) -> str:
    """Identify a training by a hash of all that determines the weights, and the seed; others are not used."""
    return f"{content_hash(plan.training_identity)}/{seed}"


def train(plan: Plan, seed: int, folder: Path, logger: RunLogger | None = None) -> tuple[nn.Module, Training]:
    """The trained model and the training's cost, read from `folder` if the training is already finished."""
    model = plan.new_model(seed)
    cost = finished_training(folder, identity_of(plan, seed))
    if cost is not None:
        (folder / CHECKPOINT).unlink(missing_ok=True)  # a killed process may have left it
        load_weights(model, folder / WEIGHTS)
        print(f"train {plan.name}: was finished already, in {folder}", file=sys.stderr)
        if logger is not None:
            logger.epochs([json.loads(line) for line in (folder / LOG).read_text().splitlines()])
        return model.to(plan.device), cost
    announce(seed)
    assert plan.defense is not None
    opened = files_named_by(plan.defense.config)
    with failures_of(f"defense {plan.name}"), record_opened_files(opened):
        loop, train_rows = loop_of(plan, model, seed)
        with Progress(f"train {plan.name}", loop.steps, "step") as progress:
            report = progress.advance if logger is None else reporting(progress, loop, logger)
            model, cost = loop.run(folder, report, identity=identity_of(plan, seed))
    if logger is not None:
        logger.epochs(loop.log)
    for warning in cost.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    save_weights(folder / WEIGHTS, model, plan.spec)
    save_history(folder, loop.bank, train_rows)
    read = {str(path): files.sha256(path) for path in sorted(opened) if path.parent != folder.resolve()}
    finished = FinishedTraining(identity_of(plan, seed), files.sha256(folder / WEIGHTS), cost, read)
    files.write_atomically(folder / FINISHED, sealed_json.encode(finished))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return model, cost


def files_named_by(config: TrainingConfig) -> set[Path]:
    """The files that settings name, such as `extra` and `checkpoint`. A file that was read for another seed counts."""
    texts = [value for value in vars(config).values() if isinstance(value, str) and value]
    return {Path(text).resolve() for text in texts if Path(text).is_file()}


def help_with(plan: Plan, seed: int) -> None:
    """Train together with the first process, which reads and writes the files."""
    with failures_of(f"defense {plan.name}"):
        loop, _ = loop_of(plan, plan.new_model(seed), seed)
        loop.run(plan.training_folder(seed), identity=identity_of(plan, seed))


def loop_of(plan: Plan, model: nn.Module, seed: int) -> tuple[Loop, np.ndarray]:
    """The training of a model by the plan's defense, and the rows of the data set that it sees."""
    assert plan.defense is not None
    config = plan.defense.config
    train_rows, held_out = training_rows(plan.arrays, config)
    x, y = plan.arrays.x_train, plan.arrays.y_train
    train = Split.training(plan.arrays, config, plan.device, train_rows)
    validation = Split(x[held_out], y[held_out], plan.device) if len(held_out) else None
    probe = make_probe(validation or train, plan.threat, None if validation else config.probe_examples)
    curves = None
    if config.keep_curves:
        curves = make_curves(train, Split.test(plan.arrays, plan.device), plan.threat, config.keep_curves)
    return Loop(model, plan.defense, train, plan.threat, seed=seed, probe=probe, curves=curves), train_rows


def reporting(progress: Progress, loop: Loop, logger: RunLogger) -> Report:
    """The report of each step, with the epochs that have ended since the last one for the logger."""

    def report(n: float, note: str = "", *, loss: SupportsFloat | None = None) -> None:
        progress.advance(n, note, loss=loss)
        logger.epochs(loop.log)

    return report


def finished_training(folder: Path, identity: str) -> Training | None:
    """The cost of the training whose weights are in the folder; None if it is not finished, or read other files."""
    finished = _read(folder)
    if finished is None or changed_files(folder):
        return None
    if finished.identity != identity or files.sha256(folder / WEIGHTS) != finished.weights:
        print(f"warning: {folder} was changed after it was finished, or is of another training", file=sys.stderr)
        return None
    return finished.cost


def changed_files(folder: Path) -> list[str]:
    """The names of the files that a finished training read and that have changed since."""
    finished = _read(folder)
    hashes = {} if finished is None else finished.read
    paths = [Path(path) for path in hashes]
    return [path.name for path in paths if not path.is_file() or files.sha256(path) != hashes[str(path)]]


def _read(folder: Path) -> FinishedTraining | None:
    path = folder / FINISHED
    try:
        if path.is_file() and (folder / WEIGHTS).is_file() and (folder / LOG).is_file():
            return sealed_json.decode(path.read_bytes(), FinishedTraining)
    except (UserError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        print(f"warning: {path} is broken", file=sys.stderr)
    return None
