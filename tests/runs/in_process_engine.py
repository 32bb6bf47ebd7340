"""An engine that does tasks in this process, in random order, on machines with a folder each, and loses some."""

import random
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

from bench.core import registry
from bench.runs.engines.engine import Engine
from bench.runs.tasks import LOST, run_task


@registry.engine("in-process")
@dataclass(kw_only=True)
class InProcess(Engine):
    """seed: of the order. machines: folders below the working one; 0 for the working one itself. losses: of workers."""

    seed: int = 0
    machines: int = 0
    losses: int = 0

    def start(self, resources):
        self.random, self.tasks, self.done = random.Random(self.seed), [], []
        return 4

    def submit(self, task):
        self.tasks.append(task)

    def next(self):
        task = self.tasks.pop(self.random.randrange(len(self.tasks)))
        self.done.append(str(task))
        lost = self.losses > 0 and self.random.random() < 0.5
        if lost:
            self.losses -= 1
            if self.random.random() < 0.5:
                return task, LOST  # before it has done anything; else after all
        home = Path.cwd()
        if self.machines:
            home = home / f"machine-{self.random.randrange(self.machines)}"
        with chdir(Path.cwd()):  # run_task changes it
            outcome = run_task(replace(task, home=home))
        return task, LOST if lost else outcome

    def stop(self):
        assert not self.tasks
