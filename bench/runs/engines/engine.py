"""The contract of an engine."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from bench.runs.tasks import Outcome, Task


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the user gives a sweep. jobs: tasks at a time; None: the engine's default.

    threads: of a task. device: as of Request. folder: for files of the engine itself, on a file system that all workers
    share.
    """

    jobs: int | None
    threads: int
    device: str
    folder: Path


class Engine(ABC):
    """Runs tasks somewhere. The fields of a subclass, a dataclass, are the options of `--engine NAME:OPTION=VALUE`.

    An engine knows nothing of what tasks do and of their order: bench/runs/sweep.py submits those that can run.
    """

    @abstractmethod
    def start(self, resources: Resources) -> int:
        """Get ready; how many tasks may be submitted at a time. UserError if a library or a cluster is missing."""

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Let a worker call run_task(task)."""

    @abstractmethod
    def next(self) -> tuple[Task, Outcome]:
        """Wait until one of the submitted tasks has ended; LOST if its worker was killed."""

    @abstractmethod
    def stop(self) -> None:
        """Release workers and connections, whether or not all tasks have ended."""

    def script(self, resources: Resources) -> str:
        """What would be submitted to a scheduler for each task, for --dry-run; empty if there is none."""
        return ""
