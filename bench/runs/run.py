"""A run: train or load, evaluate, record, in a folder that can be left and taken up again."""

from __future__ import annotations

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

from bench.core import files, record_files, record_checks, registry, seeds
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.records import SCHEMA
from bench.core.progress import Progress
from bench.core.records import Record, Training
from bench.core.example_table import Threat, accuracy, union, worst
from bench.core.threat import ThreatModel
from bench.datasets.split import Split, hold_out
from bench.core.attack_specs import make_attacks
from bench.evaluate.evaluation import evaluate_split
from bench.runs.plan import Plan
from bench.runs.command import command
from bench.training.checkpoints import CHECKPOINT, WEIGHTS, read_state, save_weights
from bench.training.loop import Loop, Probe

PROBE_STEPS = 10


def run(plan: Plan, seed: int) -> tuple[Record, Path]:
    """One seed of a plan: train (or load), evaluate, write; or read what is already there."""
    folder = plan.folder(seed)
    if not (folder / record_files.RECORD).exists():
        with _locked(folder):
            if not (folder / record_files.RECORD).exists():  # another process may just have finished it
                _run(plan, seed, folder)
    return record_files.read_run(folder), folder


def _run(plan: Plan, seed: int, folder: Path) -> None:
    torch.set_num_threads(plan.threads)
    # what use_deterministic_algorithms does, which also imports the compiler, at the price of torch itself again
    torch.set_deterministic_debug_mode("error" if plan.device.type == "cpu" else "default")
    for left in folder.glob(".*.part"):
        left.unlink()
    description = json.dumps(plan.config.as_json(), indent=1) + "\n"
    files.write_atomically(folder / "config.json", description.encode())
    if plan.loaded is not None:
        model, cost = plan.loaded.to(plan.device), None
        save_weights(folder / WEIGHTS, model, plan.spec)
    else:
        model, cost = _trained(plan, seed, folder)
    record = _evaluate(plan, seed, folder, model.eval(), cost)
    record_files.write_record(folder, record)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(folder / "parts", ignore_errors=True)


class Trained(msgspec.Struct, frozen=True):
    """training.json: what a training cost, and the weights that it ended with."""

    weights: str  # SHA-256
    cost: Training


def _trained(plan: Plan, seed: int, folder: Path) -> tuple[nn.Module, Training]:
    """The trained model, from its weights where the training was finished before."""
    model = plan.new_model(seed)
    finished = _finished_training(folder)
    if finished is not None:
        model.load_state_dict(read_state(folder / WEIGHTS), strict=True)
        return model.to(plan.device), finished
    assert plan.defense is not None
    config = plan.defense.config
    keep, held = hold_out(len(plan.arrays.y_train), config.validation, config.validation_seed)
    x, y = plan.arrays.x_train, plan.arrays.y_train
    train = Split(x[keep], y[keep], plan.device, crop=config.crop, flip=config.flip)
    validation = Split(x[held], y[held], plan.device) if len(held) else None
    probe = _probe(validation or train, plan.threat, None if validation else config.probe_examples)
    loop = Loop(model, plan.defense, train, plan.threat, seed=seed, probe=probe)
    with Progress(f"train {plan.name}", loop.epochs * loop.steps_per_epoch, "step") as progress:
        model, cost = loop.run(folder, progress.advance)
    for warning in cost.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    save_weights(folder / WEIGHTS, model, plan.spec)
    done = Trained(files.sha256(folder / WEIGHTS), cost)
    files.write_atomically(folder / "training.json", msgspec.json.encode(done))
    return model, cost


def _finished_training(folder: Path) -> Training | None:
    """The cost of the training whose weights are in the folder; None where it has to go on from its checkpoint."""
    try:
        done = msgspec.json.decode((folder / "training.json").read_bytes(), type=Trained)
        if done.weights == files.sha256(folder / WEIGHTS):
            return done.cost
    except (FileNotFoundError, msgspec.MsgspecError):
        pass
    return None


def _evaluate(plan: Plan, seed: int, folder: Path, model: nn.Module, cost: Training | None) -> Record:
    config = plan.config
    n, size = config.n_examples, config.eval_batch
    test = Split(plan.arrays.x_test[:n], plan.arrays.y_test[:n], plan.device)
    weights = record_files.artifact(folder / WEIGHTS)
    parts = folder / "parts" / weights.sha256[:16]  # of these weights and no others
    parts.mkdir(parents=True, exist_ok=True)
    found = evaluate_split(
        model, test, plan.threat, plan.attacks, certifiers=plan.certifiers, bracket=plan.bracket, batch_size=size,
        seed=seed, parts=parts,
    )  # fmt: skip
    table = found.table
    files.write_arrays(folder / record_files.TABLE, table)
    files.write_arrays(folder / record_files.WITNESSES, found.witnesses)
    record = Record(
        schema=SCHEMA, suite=config.suite, dataset=config.dataset, model=config.model,
        parameters=sum(p.numel() for p in model.parameters()), defense=plan.name, seed=seed,
        threat=Threat(config.norm, config.eps), config=config.as_json(), config_hash=config.content_hash,
        n_examples=n, clean=accuracy(table["clean"]),
        attacks=found.attacks,
        worst=worst(table), union=union(table), certifiers=found.certifiers,
        bracket=found.bracket, audited=found.audited, training=cost, sanity=found.sanity,
        artifacts={
            "weights": weights,
            "examples": record_files.artifact(folder / record_files.TABLE),
            "witnesses": record_files.artifact(folder / record_files.WITNESSES),
        },
        provenance=seeds.fingerprint(plan.device, plan.threads)
        | {
            "data_hash": config.data_hash,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": command(plan.request, seed),
        },
    )  # fmt: skip
    record_checks.check_record(record, table)
    return record


def _probe(split: Split, threat: ThreatModel, n: int | None) -> Probe | None:
    """FGSM and PGD-10 accuracy on the first n examples of a split (all, where None), always with one seed.

    None under a norm that PGD does not have.
    """
    if threat.norm not in registry.attack.get("pgd").norms:
        return None
    index = torch.arange(min(len(split), n or len(split)), device=split.y.device)
    attacks = make_attacks(["fgsm", f"pgd:steps={PROBE_STEPS}"], threat)

    def probe(model: nn.Module) -> dict[str, float]:
        found = {}
        for spec, attack in attacks.items():
            hits = 0
            for rows in index.split(256):
                batch: Batch = split.take(rows)
                x_adv = attack(model, batch, generator=seeds.generator(rows.device, 0, "probe"))
                with torch.no_grad():
                    hits += int((model(x_adv).argmax(dim=1) == batch.y).sum())
            found[spec.partition(":")[0]] = hits / len(index)
        return found

    return probe


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The run folder, made where it is missing, for this process alone."""
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
