"""A run: train or load, evaluate, write the record. An interrupted run continues from its folder."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from filelock import FileLock, Timeout
from torch import nn

from bench.core import files, record_checks, record_files, registry, seeds
from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.example_table import Threat, accuracy, union, worst
from bench.core.progress import Progress
from bench.core.records import SCHEMA, Record, Training
from bench.core.threat import ThreatModel
from bench.datasets.split import Split, hold_out
from bench.evaluate.context import EvalContext
from bench.evaluate.evaluation import evaluate_split
from bench.runs.plan import Plan
from bench.training.checkpoints import CHECKPOINT, WEIGHTS, save_weights
from bench.training.loop import Loop, Probe
from bench.training.rebuild import load_weights

PROBE_STEPS = 10


def run_seed(plan: Plan, seed: int) -> tuple[Record, Path]:
    """The record and folder of one seed of a plan: computed, or read if the run is already finished."""
    folder = plan.folder(seed)
    if not (folder / record_files.RECORD).exists():
        with _locked(folder):
            if not (folder / record_files.RECORD).exists():  # another process may have finished it meanwhile
                _compute(plan, seed, folder)
    return record_files.read_run(folder), folder


def _compute(plan: Plan, seed: int, folder: Path) -> None:
    torch.set_num_threads(plan.threads)
    # not use_deterministic_algorithms: it does the same and imports the compiler, which takes as long as torch itself
    torch.set_deterministic_debug_mode("error" if plan.device.type == "cpu" else "default")
    for partial in folder.glob(".*.part"):
        partial.unlink()
    description = json.dumps(plan.config.as_json(), indent=1) + "\n"
    files.write_atomically(folder / "config.json", description.encode())
    if plan.loaded is not None:
        model, cost = plan.loaded.to(plan.device), None
        save_weights(folder / WEIGHTS, model, plan.spec)
    else:
        model, cost = _train(plan, seed, folder)
    record = _evaluate(plan, seed, folder, model.eval(), cost)
    record_files.write_record(folder, record)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(folder / "parts", ignore_errors=True)


class FinishedTraining(msgspec.Struct, frozen=True):
    """training.json: the cost of a finished training, and the hash of its weights."""

    weights: str  # SHA-256
    cost: Training


def _train(plan: Plan, seed: int, folder: Path) -> tuple[nn.Module, Training]:
    """The trained model and the training's cost, read from the folder if the training is already finished."""
    model = plan.new_model(seed)
    cost = _finished_training(folder)
    if cost is not None:
        load_weights(model, folder / WEIGHTS)
        return model.to(plan.device), cost
    assert plan.defense is not None
    config = plan.defense.config
    train_rows, held_out = hold_out(len(plan.arrays.y_train), config.validation, config.validation_seed)
    x, y = plan.arrays.x_train, plan.arrays.y_train
    train = Split(x[train_rows], y[train_rows], plan.device, crop=config.crop, flip=config.flip)
    validation = Split(x[held_out], y[held_out], plan.device) if len(held_out) else None
    probe = _probe(validation or train, plan.threat, None if validation else config.probe_examples)
    loop = Loop(model, plan.defense, train, plan.threat, seed=seed, probe=probe)
    with Progress(f"train {plan.name}", loop.epochs * loop.steps_per_epoch, "step") as progress:
        model, cost = loop.run(folder, progress.advance)
    for warning in cost.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    save_weights(folder / WEIGHTS, model, plan.spec)
    finished = FinishedTraining(files.sha256(folder / WEIGHTS), cost)
    files.write_atomically(folder / "training.json", msgspec.json.encode(finished))
    return model, cost


def _finished_training(folder: Path) -> Training | None:
    """The cost of the training whose weights are in the folder; None if it is not finished."""
    try:
        finished = msgspec.json.decode((folder / "training.json").read_bytes(), type=FinishedTraining)
        if finished.weights == files.sha256(folder / WEIGHTS):
            return finished.cost
    except (FileNotFoundError, msgspec.MsgspecError):
        pass
    return None


def _evaluate(plan: Plan, seed: int, folder: Path, model: nn.Module, cost: Training | None) -> Record:
    config = plan.config
    weights = record_files.artifact(folder / WEIGHTS)
    parts = folder / "parts" / weights.sha256[:16]  # partial results of these weights only
    parts.mkdir(parents=True, exist_ok=True)
    context = EvalContext(
        model=model, test=plan.test_split(), threat=plan.threat, batch_size=config.eval_batch, seed=seed,
        partial_results=parts, show_progress=True,
    )  # fmt: skip
    result = evaluate_split(context, plan.attacks, certifiers=plan.certifiers, bracket=plan.bracket)
    table = result.table
    files.write_arrays(folder / record_files.TABLE, table)
    files.write_arrays(folder / record_files.WITNESSES, result.witnesses)
    record = Record(
        schema=SCHEMA, suite=config.suite, dataset=config.dataset, model=config.model,
        parameters=sum(p.numel() for p in model.parameters()), defense=plan.name, seed=seed,
        threat=Threat(config.norm, config.eps), config=config.as_json(), config_hash=config.content_hash,
        n_examples=config.n_examples, clean=accuracy(table["clean"]), attacks=result.attacks,
        worst=worst(table), union=union(table), certifiers=result.certifiers,
        bracket=result.bracket, audited=result.audited, training=cost, sanity=result.sanity,
        artifacts={
            "weights": weights,
            "examples": record_files.artifact(folder / record_files.TABLE),
            "witnesses": record_files.artifact(folder / record_files.WITNESSES),
        },
        provenance=seeds.fingerprint(plan.device, plan.threads)
        | {
            "data_hash": config.data_hash,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": plan.request.command_line(seed),
        },
    )  # fmt: skip
    record_checks.check_record(record, table)
    return record


def _probe(split: Split, threat: ThreatModel, n: int | None) -> Probe | None:
    """FGSM and PGD-10 accuracy on the first n examples of a split (None: all), always with the same seed.

    None if PGD does not support the norm.
    """
    if threat.norm not in registry.attack.get("pgd").norms:
        return None
    index = torch.arange(min(len(split), n or len(split)), device=split.y.device)
    attacks = make_attacks(["fgsm", f"pgd:steps={PROBE_STEPS}"], threat)

    def probe(model: nn.Module) -> dict[str, float]:
        accuracies = {}
        for spec, planned in attacks.items():
            correct = 0
            for rows in index.split(256):
                batch = split.take(rows)
                generator = seeds.generator(rows.device, 0, "probe")
                x_adv = planned.attack(model, batch, planned.threat, generator=generator)
                with torch.no_grad():
                    correct += int((model(x_adv).argmax(dim=1) == batch.y).sum())
            accuracies[spec.partition(":")[0]] = correct / len(index)
        return accuracies

    return probe


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create the run folder and lock it for this process; UserError if another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process works on {folder}; wait for it, or use another --out") from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()
