"""Processes of this machine."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from bench.core import registry
from bench.core.devices import choose_device
from bench.runs.engines.engine import Engine, Resources
from bench.runs.tasks import LOST, Outcome, Task, run_task


@registry.engine("local")
@dataclass(kw_only=True)
class LocalEngine(Engine):
    """Processes of this machine: one for each core, or one on a GPU."""

    _idle: list[ProcessPoolExecutor] = field(default_factory=list, init=False)
    _running: dict[Future[Outcome], tuple[Task, ProcessPoolExecutor]] = field(default_factory=dict, init=False)

    def start(self, resources: Resources) -> int:
        return jobs_here(resources)

    def submit(self, task: Task) -> None:
        # one pool a process, because a pool is of no use any more once one of its processes was killed
        pool = self._idle.pop() if self._idle else _one_process()
        self._running[pool.submit(run_task, task)] = task, pool

    def next(self) -> tuple[Task, Outcome]:
        future = wait(self._running, return_when=FIRST_COMPLETED).done.pop()
        task, pool = self._running.pop(future)
        try:
            outcome = future.result()
        except BrokenProcessPool:
            pool.shutdown()
            return task, LOST
        self._idle.append(pool)
        return task, outcome

    def stop(self) -> None:
        for pool in [*self._idle, *(pool for _, pool in self._running.values())]:
            pool.shutdown(cancel_futures=True)


def jobs_here(resources: Resources) -> int:
    """How many tasks this machine takes at a time: as many as were asked for, else one a core, or one on a GPU."""
    if resources.jobs is not None:
        return resources.jobs
    if choose_device(resources.device).type == "cuda":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_process() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_exit_with_parent, initargs=(os.getpid(),))


def _exit_with_parent(parent: int) -> None:
    """End this process when the sweep's own process ends, even if that one is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
