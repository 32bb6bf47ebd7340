"""`bench sweep`: every defense of a suite with every seed, in parallel processes. Finished runs are not repeated."""

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.core import record_files, registry
from bench.core.devices import choose_device
from bench.core.errors import CheckError, UserError
from bench.core.progress import Progress
from bench.core.records import Record
from bench.runs.plan import Plan, make_plan
from bench.runs.request import Request
from bench.runs.run import finished_result, run_seed

Cell = tuple[str, int]  # a defense and a seed


@dataclass(frozen=True)
class SweepResult:
    """The records by defense and seed, and the reason for each missing one: `atas seed 1` -> one line."""

    records: list[Record] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # defenses that cannot run on the suite
    failed: dict[str, str] = field(default_factory=dict)


def sweep(
    request: Request, defenses: Sequence[str] | None, seeds: Sequence[int], jobs: int | None = None
) -> SweepResult:
    """Run `request` for each defense (None: all registered) and seed, `jobs` at a time.

    jobs: default one process per core, or one process on a GPU. UserError if a named defense cannot run; without
    names, such defenses are skipped and reported in `refused`.
    """
    result = SweepResult()
    for path in request.plugins:
        registry.load_plugin(path)
    plans: dict[str, Plan] = {}
    for name in defenses or registry.defense.entries():
        try:
            plans[name] = make_plan(replace(request, defense=name))
        except UserError as error:
            if defenses is not None:
                raise
            result.refused[name] = str(error)
    cells = [(name, seed) for seed in seeds for name in plans]  # an interrupted sweep has all defenses of some seeds
    missing = [(name, seed) for name, seed in cells if finished_result(plans[name], seed) is None]
    jobs = min(jobs or _default_jobs(request.device), max(len(missing), 1))
    with Progress(f"sweep, {jobs} at a time", len(cells), "run") as progress:
        progress.advance(len(cells) - len(missing), "finished before")
        for (name, seed), problem in _run_cells(request, missing, jobs):
            progress.advance(1, f"{name} seed {seed}")
            if problem is not None:
                result.failed[f"{name} seed {seed}"] = problem
    for name in plans:
        folders = [plans[name].folder(seed) for seed in seeds if f"{name} seed {seed}" not in result.failed]
        result.records.extend(record_files.read_run(folder) for folder in folders)
    return result


def _default_jobs(device: str) -> int:
    if choose_device(device).type == "cuda":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_cells(request: Request, cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, str | None]]:
    """Each cell as it ends, with its error in one line, or None."""
    per_process = request if jobs == 1 or request.threads else replace(request, threads=1)
    logs = request.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    suite = Path(request.suite or "").name.removesuffix(".toml")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_exit_with_parent, initargs=(os.getpid(),)) as pool:
        running: dict[Future[str | None], Cell] = {}
        for name, seed in cells:
            log = logs / f"{suite}-{name}-{seed}.log"
            running[pool.submit(_run_cell, replace(per_process, defense=name), seed, log)] = name, seed
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise CheckError(
                "a process of the sweep was killed, perhaps for lack of memory; run the same command again with fewer "
                "--jobs, and it continues from here"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _exit_with_parent(parent: int) -> None:
    """End this process when the sweep's own process ends, even if that one is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_cell(request: Request, seed: int, log: Path) -> str | None:
    """One run, with its output in a log file. Returns its error in one line, or None."""
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            run_seed(make_plan(request), seed)
        except (UserError, CheckError) as error:
            if error.__cause__ is None:
                return str(error)
            traceback.print_exception(error)  # code of a plugin or a library raised something else
            return f"{error}; see {log}"
        except Exception as error:  # a plugin's code may raise anything; the other runs continue
            traceback.print_exc()
            return f"{registry.one_line(error)}; see {log}"
    return None
