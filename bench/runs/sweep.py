"""`bench sweep`: every defense of a suite with every seed, as tasks of an engine. Finished runs are not repeated."""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bench.core import record_files, registry
from bench.core.counts import counted
from bench.core.errors import UserError
from bench.core.progress import LOGGER
from bench.core.records import Record
from bench.core.specs import parse_spec
from bench.core.verification import verified
from bench.evaluate.context import Shard
from bench.runs.engines.engine import Engine, Resources
from bench.runs.plan import Plan, make_plan
from bench.runs.request import Request, split_defense
from bench.runs.run import finished_result
from bench.runs.store import Store
from bench.runs.tasks import Outcome, Task

THREADS = 1  # threads per task without --threads; results depend on it, so all engines use the same number
PATIENCE = 120.0  # seconds until a worker whose sweep was killed releases its locks
MAX_RESUBMISSIONS = 3  # how often a task is submitted again after its worker was killed
ROUNDS = 1000  # of the shards of one evaluation; far more than there are stages


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a sweep runs. engine: a spec of `bench list engines`. jobs: tasks at a time. shards: of each evaluation.

    store: URL of an object store that holds the runs, for workers without a file system in common.
    """

    engine: str = "local"
    jobs: int | None = None
    shards: int = 1
    store: str | None = None


@dataclass(frozen=True)
class SweepResult:
    """The records by defense and seed, and the reason for each missing one: `atas seed 1` -> one line."""

    records: list[Record] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # defenses that cannot run on the suite
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Cell:
    """A defense and a seed, and how far its tasks are."""

    plan: Plan
    seed: int
    options: Options
    running: int = 0  # tasks
    rounds: int = 0  # of shards
    waits: bool = False  # whether a shard of this round waits for others
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.plan.name} seed {self.seed}"

    def first_tasks(self) -> list[Task]:
        return self._started(self._task("run") if self.options.shards == 1 else self._task("train"))

    def next_tasks(self, task: Task, outcome: Outcome) -> list[Task]:
        """The tasks that can run now that one has ended; empty at the end of the cell if none is running."""
        self.running -= 1
        self.waits |= outcome.waits
        self.problem = self.problem or outcome.problem
        if self.problem or self.running or task.step == "run":
            return []
        if task.step == "train" or (self.waits and self.rounds < ROUNDS):
            self.rounds, self.waits = self.rounds + 1, False
            return self._started(
                *(self._task("shard", Shard(k, self.options.shards)) for k in range(self.options.shards))
            )
        return self._started(self._task("run"))

    def _started(self, *tasks: Task) -> list[Task]:
        self.running += len(tasks)
        return list(tasks)

    def _task(self, step: Literal["run", "train", "shard"], shard: Shard | None = None) -> Task:
        request = self.plan.request
        if step != ("run" if self.options.shards == 1 else "train"):
            request = replace(request, force=False)  # the first task has removed what was there
        name = f"{self.plan.label}-{self.seed}" + ("" if shard is None else f"-shard-{shard.number + 1}")
        return Task(
            request=request, seed=self.seed, step=step, log=logs_folder(request) / f"{name}.log", home=Path.cwd(),
            shard=shard, store=self.options.store,
        )  # fmt: skip


def plan_cells(
    request: Request, defenses: Sequence[str] | None, seeds: Sequence[int], options: Options
) -> tuple[list[Cell], dict[str, str]]:
    """Return the cells of a sweep, and the defenses that cannot run on the suite, each with the reason.

    defenses: names, or specs with settings (`trades:beta=5`); None for all registered. UserError if a named one cannot
    run, or its evaluation cannot be divided.
    """
    registry.load_plugins(request.plugins)
    if options.shards > 1 and request.time_limit is not None:
        raise UserError("--time-limit makes results depend on the clock, so shards would differ; leave out one of them")
    request = replace(request, threads=request.threads or THREADS, patience=PATIENCE)
    plans: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    for spec in defenses or registry.defense.entries():
        name, overrides = split_defense(spec, request.overrides)
        if name in plans:
            raise UserError(f"--defenses has {name} twice; give each setting of a defense to a sweep of its own")
        try:
            plans[name] = make_plan(replace(request, defense=name, overrides=overrides))
        except UserError as error:
            if defenses is not None:
                raise
            refused[name] = str(error)
    # an interrupted sweep has all defenses of some seeds
    return [Cell(plan=plan, seed=seed, options=options) for seed in seeds for plan in plans.values()], refused


def sweep(
    request: Request, defenses: Sequence[str] | None, seeds: Sequence[int], options: Options | None = None
) -> SweepResult:
    """Run `request` for each defense (None: all registered) and seed.

    UserError if a named defense cannot run; without names, such defenses are skipped and reported in `refused`.
    """
    options = options or Options()
    engine = make_engine(options.engine)
    cells, refused = plan_cells(request, defenses, seeds, options)
    store = None if options.store is None else Store(options.store, request.out)
    missing = [cell for cell in cells if not is_finished(cell, store)]
    result, done = SweepResult(refused=refused), len(cells) - len(missing)
    with started(engine, resources_of(request, options), len(missing) * options.shards) as jobs:
        if missing:
            _tell(f"sweep, {jobs} at a time: {counted(len(cells), 'run')}, {done} of them finished before")
        start = time.monotonic()
        for cell in run_cells(engine, missing, jobs):
            done += 1
            end = cell.problem or f"finished after {time.monotonic() - start:.0f} s"
            _tell(f"{done} of {len(cells)}: {cell}: {end}")
            if cell.problem:
                result.failed[str(cell)] = cell.problem
    names = list(dict.fromkeys(cell.plan.name for cell in cells))
    for cell in sorted(cells, key=lambda cell: names.index(cell.plan.name)):
        folder = cell.plan.folder(cell.seed)
        if str(cell) not in result.failed:
            if store is not None and cell in missing:
                store.pull(folder)
            result.records.append(verified(record_files.read_run(folder), folder))
    return result


def make_engine(spec: str) -> Engine:
    """The engine of a spec of `bench list engines`; UserError for an unknown one."""
    engine: Engine = parse_spec(spec, registry.engine).build()
    return engine


def resources_of(request: Request, options: Options) -> Resources:
    return Resources(
        jobs=options.jobs, threads=request.threads or THREADS, device=request.device, folder=logs_folder(request)
    )


def logs_folder(request: Request) -> Path:
    return request.out.absolute() / "logs"


def is_finished(cell: Cell, store: Store | None) -> bool:
    """Whether a run that answers the request is in the folder of runs, fetched from the store if only that has it."""
    folder = cell.plan.folder(cell.seed)
    finished = finished_result(cell.plan, cell.seed) is not None
    if store is not None and not finished and not cell.plan.request.force and store.is_finished(folder):
        store.pull(folder)
        return finished_result(cell.plan, cell.seed) is not None
    if store is not None and finished and not store.is_finished(folder):
        store.push(folder)
    return finished


@contextmanager
def started(engine: Engine, resources: Resources, tasks: int) -> Iterator[int]:
    """Start the engine, if there are tasks, and stop it at the end; yields how many tasks it takes at a time."""
    if not tasks:
        yield 0
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(resources.threads)  # numpy's threads are chosen when a worker starts
    try:
        yield min(engine.start(resources), tasks)
    finally:
        engine.stop()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def run_cells(engine: Engine, cells: Sequence[Cell], jobs: int) -> Iterator[Cell]:
    """Yield each cell as it ends, with its problem if there was one. At most `jobs` tasks are submitted at a time."""
    ready = deque((cell, task) for cell in cells for task in cell.first_tasks())
    submitted: dict[str, Cell] = {}  # by task
    lost: Counter[str] = Counter()
    while ready or submitted:
        while ready and len(submitted) < jobs:
            cell, task = ready.popleft()
            submitted[str(task)] = cell
            engine.submit(task)
        task, outcome = engine.next()
        cell = submitted.pop(str(task))
        if outcome.lost:
            lost[str(task)] += 1
            if lost[str(task)] <= MAX_RESUBMISSIONS and not cell.problem:
                ready.appendleft((cell, task))
                continue
            outcome = Outcome(
                f"its worker was killed {MAX_RESUBMISSIONS + 1} times, perhaps for lack of memory; take fewer --jobs"
            )
        # the tasks of a cell that has begun come first, so that it ends early
        ready.extendleft((cell, each) for each in reversed(cell.next_tasks(task, outcome)))
        if not cell.running:
            yield cell


def _tell(line: str) -> None:
    if not LOGGER.disabled:
        print(line, file=sys.stderr, flush=True)
