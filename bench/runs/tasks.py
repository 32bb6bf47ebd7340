"""The tasks of a sweep, which a worker of any engine runs. A repeated task only does what is missing."""

import os
import traceback
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.core import registry
from bench.core.errors import CheckError, UserError
from bench.evaluate.context import Shard
from bench.runs.plan import Plan, make_plan
from bench.runs.request import Request
from bench.runs.run import begin_seed, evaluate_shard_of_seed, run_seed
from bench.runs.store import Store, mirrored


@dataclass(frozen=True, kw_only=True)
class Task:
    """A step of one cell (defense and seed) of a sweep.

    step: `run` does all of it, or what is left; `train` does all before the evaluation; `shard` computes the batches of
    `shard`. home: the folder that relative paths refer to. store: the URL that holds the runs; None for a file system
    that all workers share.
    """

    request: Request
    seed: int
    step: Literal["run", "train", "shard"]
    log: Path
    home: Path
    shard: Shard | None = None
    store: str | None = None

    def __str__(self) -> str:
        cell = f"{self.request.defense} seed {self.seed}"
        if self.shard is not None:
            return f"{cell}, shard {self.shard.number + 1} of {self.shard.of}"
        return cell if self.step == "run" else f"{cell}, training"


@dataclass(frozen=True)
class Outcome:
    """How a task ended. problem: in one line; empty if there was none.

    waits: a shard could not finish because results of other shards were missing. lost: its worker was killed.
    """

    problem: str = ""
    waits: bool = False
    lost: bool = False


LOST = Outcome(lost=True)


def run_task(task: Task) -> Outcome:
    """Run a task, with its output in a log file. Any exception becomes the outcome's `problem`."""
    task.home.mkdir(parents=True, exist_ok=True)
    os.chdir(task.home)
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            return _do(task, make_plan(task.request))
        except (UserError, CheckError) as error:
            if error.__cause__ is None:
                return Outcome(str(error))
            traceback.print_exception(error)  # code of a plugin or a library raised something else
            return Outcome(f"{error}; see {task.log}")
        except Exception as error:  # a plugin's code may raise anything; the other runs continue
            traceback.print_exc()
            return Outcome(f"{registry.one_line(error)}; see {task.log}")


def _do(task: Task, plan: Plan) -> Outcome:
    folders = [plan.folder(task.seed)] if task.shard is not None else cell_folders(plan, task.seed)
    with nullcontext() if task.store is None else mirrored(Store(task.store, plan.request.out), folders):
        if task.shard is not None:
            return Outcome(waits=not evaluate_shard_of_seed(plan, task.seed, task.shard))
        if task.step == "train":
            begin_seed(plan, task.seed)
        else:
            run_seed(plan, task.seed)
    return Outcome()


def cell_folders(plan: Plan, seed: int) -> list[Path]:
    """The folders that a cell writes: those of its training and of its run."""
    return [plan.training_folder(seed), plan.folder(seed)]
