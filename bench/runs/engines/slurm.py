"""Slurm, through submitit."""

import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.core import files, registry
from bench.core.errors import UserError
from bench.core.extras import import_extra
from bench.core.registry import one_line
from bench.runs.engines.engine import Engine, Resources
from bench.runs.engines.local import jobs_here
from bench.runs.tasks import LOST, Outcome, Task, run_task

AT_A_TIME = 200  # jobs in the queue, unless --jobs says otherwise
REQUEUES = 1000  # of a job that reaches its limit of time
PAUSE = 0.5  # seconds between polls


@registry.engine("slurm")
@dataclass(kw_only=True)
class SlurmEngine(Engine):
    """Jobs of Slurm, through submitit (extra `slurm`): one for each task, on a file system that all nodes share.

    A job that reaches its limit of time, or is preempted, is queued again and goes on. If the sweep itself is killed,
    its jobs stay in the queue, and the same command waits for them.
    """

    partition: str = ""  # none: the default of the cluster
    account: str = ""  # none: the default of the user
    minutes: int = 240  # limit of a job, after which it is queued again
    memory_gb: float = 8.0  # of a task
    gpus: int = 0  # of a task
    setup: str = ""  # shell command that each job runs first, such as module load python
    cluster: Literal["slurm", "local"] = "slurm"  # local: processes of this machine, for a trial without Slurm

    _submitit: Any = field(default=None, init=False)
    _executor: Any = field(default=None, init=False)
    _folder: Path = field(default=Path(), init=False)
    _running: dict[str, tuple[Task, Any]] = field(default_factory=dict, init=False)

    def start(self, resources: Resources) -> int:
        self._submitit, self._folder = _import(), resources.folder / "slurm"
        kind = self._submitit.SlurmExecutor if self.cluster == "slurm" else self._submitit.LocalExecutor
        try:
            self._executor = kind(self._folder / "%j", max_num_timeout=REQUEUES)
        except RuntimeError as error:
            raise UserError(
                f"engine 'slurm' cannot be started ({one_line(error)}); run it where sbatch and srun are, or try it "
                "with --engine slurm:cluster=local"
            ) from error
        if self.cluster == "slurm":
            self._executor.update_parameters(**self._parameters(resources))
        else:
            self._executor.update_parameters(timeout_min=self.minutes, gpus_per_node=self.gpus)
        return jobs_here(resources) if self.cluster == "local" else resources.jobs or AT_A_TIME

    def submit(self, task: Task) -> None:
        job = self._submitted_before(task)
        if job is None:
            job = self._executor.submit(_Resumable(), task)
            files.write_atomically(self._job_file(task), job.job_id.encode())
        self._running[str(task)] = task, job

    def next(self) -> tuple[Task, Outcome]:
        while True:
            for name, (task, job) in self._running.items():
                if job.done():
                    del self._running[name]
                    self._job_file(task).unlink(missing_ok=True)
                    return task, self._outcome(job)
            time.sleep(PAUSE)

    def stop(self) -> None:
        """Jobs stay in the queue: see the class."""

    def script(self, resources: Resources) -> str:
        _import()
        from submitit.slurm.slurm import _make_sbatch_string  # its SlurmExecutor exists only where Slurm does

        folder = resources.folder / "slurm" / "%j"
        command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
        text: str = _make_sbatch_string(command=command, folder=folder, **self._parameters(resources))
        return text

    def _parameters(self, resources: Resources) -> dict[str, Any]:
        """Options of sbatch, by the names of submitit."""
        given = {
            "job_name": "bench", "time": self.minutes, "mem": f"{self.memory_gb:g}GB",
            "cpus_per_task": resources.threads, "gpus_per_node": self.gpus, "partition": self.partition,
            "account": self.account, "setup": [self.setup] if self.setup else None,
        }  # fmt: skip
        return {key: value for key, value in given.items() if value}

    def _outcome(self, job: Any) -> Outcome:
        try:
            outcome: Outcome = job.result()
        except self._submitit.core.utils.FailedJobError as error:  # for example, another version on the node
            return Outcome(
                f"its job {job.job_id} failed ({str(error).strip().splitlines()[-1]}; see {job.paths.stderr}"
            )
        except self._submitit.core.utils.UncompletedJobError:
            return LOST
        return outcome

    def _submitted_before(self, task: Task) -> Any:
        """The job of a task that a killed sweep has left in the queue, or None."""
        path = self._job_file(task)
        if self.cluster != "slurm" or not path.exists():
            return None
        job = self._submitit.SlurmJob(self._folder / "%j", path.read_text())
        return None if job.done(force_check=True) else job

    def _job_file(self, task: Task) -> Path:
        return self._folder / f"{task.log.stem}.job"


class _Resumable:
    """run_task, as a function that submitit may interrupt and queue again."""

    def __call__(self, task: Task) -> Outcome:
        return run_task(task)

    def checkpoint(self, task: Task) -> Any:
        return _import().helpers.DelayedSubmission(self, task)


def _import() -> Any:
    return import_extra("submitit", "slurm", "engine 'slurm'")
