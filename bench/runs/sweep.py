"""`bench sweep`: every defense of a suite with every seed, in parallel processes. What is finished is not run again."""

from __future__ import annotations

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

from bench.runs import run as harness
from bench.core import record_files, registry
from bench.core.errors import CheckError, UserError
from bench.core.progress import Progress
from bench.core.records import Record
from bench.core.devices import choose_device
from bench.runs.plan import Plan, Request, plan


@dataclass(frozen=True)
class Swept:
    """The records of a sweep, defense by defense, and why what did not run did not: `atas seed 1` -> one line."""

    records: list[Record] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # defenses that the suite cannot have
    failed: dict[str, str] = field(default_factory=dict)


def sweep(request: Request, defenses: Sequence[str] | None, seeds: Sequence[int], jobs: int | None = None) -> Swept:
    """Run `request` for each of the defenses (None: all that there are) and seeds, `jobs` at a time.

    jobs: None for a process a core, and one process on a GPU. UserError where a defense that was named cannot be run;
    one that was not named is left out, and Swept.refused says why.
    """
    done = Swept()
    for path in request.plugins:
        registry.load_plugin(path)
    plans: dict[str, Plan] = {}
    for name in defenses or registry.defense.entries():
        try:
            plans[name] = plan(replace(request, defense=name))
        except UserError as error:
            if defenses is not None:
                raise
            done.refused[name] = str(error)
    cells = [(name, seed) for seed in seeds for name in plans]  # seed by seed: half a sweep is a board already
    open_ = [cell for cell in cells if not (plans[cell[0]].folder(cell[1]) / record_files.RECORD).exists()]
    jobs = min(jobs or _cores(request.device), max(len(open_), 1))
    with Progress(f"sweep, {jobs} at a time", len(cells), "run") as progress:
        progress.advance(len(cells) - len(open_), "finished before")
        for (name, seed), problem in _run(request, open_, jobs):
            progress.advance(1, f"{name} seed {seed}")
            if problem is not None:
                done.failed[f"{name} seed {seed}"] = problem
    for name in plans:
        folders = [plans[name].folder(seed) for seed in seeds if f"{name} seed {seed}" not in done.failed]
        done.records.extend(record_files.read_run(folder) for folder in folders)
    return done


def _cores(device: str) -> int:
    if choose_device(device).type == "cuda":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(request: Request, cells: Sequence[tuple[str, int]], jobs: int) -> Iterator[tuple[tuple[str, int], str | None]]:
    """Each cell as it ends, with what was wrong, None where nothing was."""
    share = request if jobs == 1 or request.threads else replace(request, threads=1)
    logs = request.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        running: dict[Future[str | None], tuple[str, int]] = {}
        for name, seed in cells:
            log = logs / f"{request.suite}-{name}-{seed}.log"
            running[pool.submit(_run_cell, replace(share, defense=name), seed, log)] = name, seed
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise CheckError(
                "a process of the sweep was killed, by want of memory perhaps; the same command goes on from here, "
                "with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """Let this process end when the sweep's own does: nobody would wait for what it goes on with."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_cell(request: Request, seed: int, log: Path) -> str | None:
    """One run in a process of its own, its output in a file; what was wrong in one line, None where nothing was."""
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            harness.run(plan(request), seed)
        except (UserError, CheckError) as error:
            return str(error)
        except Exception as error:  # a plugin's code may raise anything; the other runs go on
            traceback.print_exc()
            return f"{registry.one_line(error)}; see {log}"
    return None
