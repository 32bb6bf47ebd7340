"""Runs: train or load, evaluate, write the record. An interrupted run continues from its folders."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from bench.core import files, record_files
from bench.core.errors import CheckError, UserError
from bench.core.folders import locked, remove_leftovers
from bench.core.record_files import LOG, WEIGHTS
from bench.core.records import Record, Training
from bench.evaluate.context import Shard
from bench.runs.evaluate import PARTS, evaluate, evaluate_shard_of_run
from bench.runs.loggers import RunLogger, make_logger
from bench.runs.plan import Plan
from bench.runs.processes import announced
from bench.runs.train import FINISHED, changed_files, help_with, train
from bench.training.checkpoints import save_weights
from bench.training.histories import LOSSES
from bench.training.rebuild import load_weights
from leaderboard.single_run_tables import accuracies

NAMED = 3  # maximum number of files that a message lists


class SeedResult(NamedTuple):
    """One seed of a plan. finished_before: when, and with which source code, if it was finished earlier; else empty."""

    record: Record
    folder: Path
    finished_before: str = ""


def run_seed(plan: Plan, seed: int) -> SeedResult:
    """Return the record of one seed of a plan: computed, or read if the run is already finished.

    A finished run of other source code is repeated, and the old one is kept in OUT/replaced; with `reuse`, the old one
    is returned with a note. With `force`, the training and the evaluation are always repeated.
    """
    folder = plan.folder(seed)
    if (result := finished_result(plan, seed)) is not None:
        return result
    with _locked(folder, plan):
        if (result := finished_result(plan, seed)) is not None:  # another process has finished it meanwhile
            return result
        logger = _logger(plan, seed, folder)
        model, cost = _begin(plan, seed, folder, logger)
        record = evaluate(plan, seed, folder, model, cost)
        record_files.write_record(folder, record)
        if logger is not None:
            logger.result({name: each.acc for name, each in accuracies(record).items()})
        _remove_unfinished(folder)
    return SeedResult(record_files.read_run(folder), folder)


def begin_seed(plan: Plan, seed: int) -> None:
    """Do the part of `run_seed` before the evaluation: afterwards the weights are in the folder of the run."""
    folder = plan.folder(seed)
    with _locked(folder, plan):
        if finished_result(plan, seed) is None:
            _begin(plan, seed, folder, None)  # run_seed sends the epochs to a dashboard


def evaluate_shard_of_seed(plan: Plan, seed: int, shard: Shard) -> bool:
    """Compute partial results of a run that `begin_seed` has begun, beside other processes with other shards.

    Returns whether nothing was missing: then `run_seed` only reads the stored results. If results of other shards were
    missing, call it again once those calls have returned too.
    """
    folder = plan.folder(seed)
    if finished_result(plan, seed) is not None:
        return True
    _set_torch_state(plan)
    model = plan.new_model(seed)
    load_weights(model, folder / WEIGHTS)
    return evaluate_shard_of_run(plan, seed, folder, model.to(plan.device), shard)


def finished_result(plan: Plan, seed: int) -> SeedResult | None:
    """Return the finished run for the request; None if it is missing, of other source code, or to be repeated."""
    folder = plan.folder(seed)
    if plan.request.force or not (folder / record_files.RECORD).exists():
        return None
    record = record_files.read_run(folder)
    if (record.config_hash, record.seed) != (plan.config.content_hash, seed):
        raise CheckError(
            f"{folder} holds a run of config {record.config_hash} and seed {record.seed}; delete it and run again"
        )
    changed = _changed(plan, record)
    if changed and not plan.request.reuse:
        return None
    _clean_up(folder)
    by_other = f", by other source ({_listed(changed)})" if changed else ""
    return SeedResult(record, folder, f"was finished already, {record.provenance.get('finished')}{by_other}")


def _changed(plan: Plan, record: Record) -> list[str]:
    """The names of the source and data files that have changed since the run, and of options with other values."""
    read = [] if plan.config.defense is None else changed_files(plan.training_folder(record.seed))
    return plan.sources.changed_since(record) + read + ([] if _threads(plan, record) is None else ["--threads"])


def _threads(plan: Plan, record: Record) -> int | None:
    """The number of CPU threads of the run, if the request names another one."""
    made = record.provenance.get("threads")
    other = plan.device.type == "cpu" and plan.request.threads not in (None, made)
    return int(made) if other and made is not None else None


def _move_to_replaced(plan: Plan, folder: Path) -> None:
    """Move a finished run to OUT/replaced, and say why."""
    try:
        record = record_files.read_record(folder)
    except UserError as error:
        raise CheckError(f"{error}; delete {folder} to make it again") from error
    source = record.provenance.get("source", "unknown")
    home = plan.request.out / record_files.REPLACED / folder.parent.name
    aside = next(path for n in range(1, 1_000_000) if not (path := home / f"{folder.name}-{source}-{n}").exists())
    home.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    folder.mkdir()
    if plan.request.force:
        why = "is made again"
    elif (threads := _threads(plan, record)) is not None:
        why = f"was made with --threads {threads} and is made again"
    elif "source_files" in record.provenance:
        why = f"was made by other source ({_listed(_changed(plan, record))}) and is made again"
    else:
        why = "was made by unknown source and is made again"
    print(f"{folder} {why}; the old one is kept in {aside}", file=sys.stderr)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _begin(plan: Plan, seed: int, folder: Path, logger: RunLogger | None) -> tuple[nn.Module, Training | None]:
    """The model whose weights are now in the folder, and the cost of its training. The folder is locked."""
    if plan.request.force:
        _remove_unfinished(folder)
    if (folder / record_files.RECORD).exists():
        _move_to_replaced(plan, folder)
    _set_torch_state(plan)
    _start_folder(folder, plan.config.as_json())
    if plan.loaded is None:
        return _trained(plan, seed, folder, logger)
    model = plan.loaded.to(plan.device)
    save_weights(folder / WEIGHTS, model, plan.spec)
    return model, None


def _logger(plan: Plan, seed: int, folder: Path) -> RunLogger | None:
    request = plan.request
    if request.log is None:
        return None
    return make_logger(request.log, request.out, folder.parent.name, seed, plan.config.as_json())


def _set_torch_state(plan: Plan) -> None:
    """Set the plan's number of threads and determinism for this process."""
    torch.set_num_threads(plan.threads)
    # not use_deterministic_algorithms: it does the same and imports the compiler, which takes as long as torch itself
    torch.set_deterministic_debug_mode("error" if plan.device.type == "cpu" else "default")


def _trained(plan: Plan, seed: int, folder: Path, logger: RunLogger | None) -> tuple[nn.Module, Training]:
    """Train the model. Copy its weights and its log to the folder of the run, so that this is complete by itself."""
    with _training(plan, seed) as home:
        model, cost = train(plan, seed, home, logger)
        for name in (WEIGHTS, LOG, *([LOSSES] if (home / LOSSES).exists() else [])):
            files.write_atomically(folder / name, (home / name).read_bytes())
    return model, cost


def train_seed(plan: Plan, seed: int) -> nn.Module:
    """Return the trained model of one seed of a plan, trained now or read from OUT/trainings."""
    _set_torch_state(plan)
    with _training(plan, seed) as home:
        model, _ = train(plan, seed, home)
    return model


def help_to_train(plan: Plan) -> None:
    """Take part in the trainings of torchrun's first process, until all runs are done; for the other processes."""
    _set_torch_state(plan)
    while (seed := announced()) is not None:
        help_with(plan, seed)


@contextmanager
def _training(plan: Plan, seed: int) -> Iterator[Path]:
    """Lock the folder of the training and write its config; empty the folder first if the request is to train again."""
    home = plan.training_folder(seed)
    with _locked(home, plan):
        if plan.request.force:
            (home / FINISHED).unlink(missing_ok=True)  # first: without it, nothing else in the folder counts
            shutil.rmtree(home)
            home.mkdir()
        _start_folder(home, plan.training_identity)
        yield home


def _start_folder(folder: Path, config: dict[str, object]) -> None:
    remove_leftovers(folder)
    files.write_atomically(folder / record_files.CONFIG, f"{json.dumps(config, indent=1)}\n".encode())


def _remove_unfinished(folder: Path) -> None:
    """Delete partial results, and what a killed process may have left beside them."""
    remove_leftovers(folder)
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def _clean_up(folder: Path) -> None:
    """Delete leftovers of a process that was killed just after it wrote the record, if no other process works there."""
    if (folder / PARTS).exists() or _lock_file(folder).exists():
        with suppress(UserError, OSError), _locked(folder):
            _remove_unfinished(folder)


def _locked(folder: Path, plan: Plan | None = None) -> AbstractContextManager[None]:
    """Create a folder and lock it for this process.

    UserError if another process holds the lock, after the patience of the request.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problem = f"another process works on {folder}; wait for it, or use another --out"
    return locked(_lock_file(folder), problem, 0.0 if plan is None else plan.request.patience)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")  # beside it, so that the folder can be moved
