"""Ray, on a running cluster or on one that is started for the sweep."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any

from bench.core import registry
from bench.core.devices import choose_device
from bench.core.errors import UserError
from bench.core.extras import import_extra
from bench.core.registry import one_line
from bench.runs.engines.engine import Engine, Resources
from bench.runs.engines.local import jobs_here
from bench.runs.tasks import LOST, Outcome, Task, run_task

OBJECT_STORE = 100 * 2**20  # bytes of shared memory, of a cluster that is started here: tasks and outcomes are small


@registry.engine("ray")
@dataclass(kw_only=True)
class RayEngine(Engine):
    """Tasks of Ray, on a running cluster or on one that is started here (extra `ray`).

    Every node needs this version of robust-bracket, the same versions of torch and numpy, and the data; and either the
    file system of --out or the object store of --store.
    """

    address: str = ""  # host of a running cluster's head, or auto; none: RAY_ADDRESS, else one is started here
    port: int = 6379  # of the address
    gpus: float | None = None  # of a task, 0.5 for half of one; none: 1 if this machine has one that --device allows

    _ray: Any = field(default=None, init=False)
    _remote: Any = field(default=None, init=False)
    _running: dict[Any, Task] = field(default_factory=dict, init=False)

    def start(self, resources: Resources) -> int:
        self._ray = ray = import_extra("ray", "ray", "engine 'ray'")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = f"{self.address}:{self.port}" if self.address not in ("", "auto") else self.address
        address = address or os.environ.get("RAY_ADDRESS", "")
        jobs = jobs_here(resources)
        try:
            if address:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
                jobs = resources.jobs or max(1, int(ray.cluster_resources().get("CPU", 1)) // resources.threads)
            else:
                ray.init(
                    "local", num_cpus=jobs * resources.threads, object_store_memory=OBJECT_STORE,
                    include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                )  # fmt: skip
        except Exception as error:  # Ray raises many kinds, and plain Exception if its processes start too slowly
            where = f"at {address} " if address else ""
            raise UserError(
                f"engine 'ray' {where}cannot be started ({one_line(error)}); try again, or check its address"
            ) from error
        # max_retries=0: the sweep resubmits lost tasks and limits the attempts
        gpus = self.gpus if self.gpus is not None else float(choose_device(resources.device).type == "cuda")
        self._remote = ray.remote(run_task).options(num_cpus=resources.threads, num_gpus=gpus, max_retries=0)
        return jobs

    def submit(self, task: Task) -> None:
        self._running[self._remote.remote(task)] = task

    def next(self) -> tuple[Task, Outcome]:
        (done,), _ = self._ray.wait(list(self._running), num_returns=1)
        task, errors = self._running.pop(done), self._ray.exceptions
        try:
            return task, self._ray.get(done)
        except errors.RayTaskError as error:  # for example, another version of robust-bracket on the worker
            return task, Outcome(f"its worker cannot do it ({one_line(error.cause or error)})")
        except errors.RayError:
            return task, LOST

    def stop(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()
