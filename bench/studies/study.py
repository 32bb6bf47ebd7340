"""The base classes of studies, of those that load or train models, and of those that keep what they trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bench.core.errors import UserError
from bench.runs.plan import Plan, make_plan
from bench.runs.request import Request
from bench.runs.run import train_seed
from bench.runs.train import loop_of


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """An experiment that is neither a defense nor an attack. Its fields are the options of `bench study NAME --set`."""

    @abstractmethod
    def run(self) -> str:
        """Run the experiment and return the report. UserError for an invalid option, before any long computation."""


@dataclass(frozen=True, kw_only=True)
class ModelStudy(Study):
    """A study of models that are trained or loaded as `bench run` and `bench eval` do."""

    data_dir: str | None = None  # folder with NAME.npz; none: BENCH_DATA, else a download
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    threads: int | None = None  # CPU threads; none: by the size of the model

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"threads is {self.threads}; it must be 1 to 1024")

    def plan(self, **options: Any) -> Plan:
        """The plan of a Request without attacks; sets the number of CPU threads."""
        data_dir = Path(self.data_dir) if self.data_dir else None
        request = Request(attacks=[], data_dir=data_dir, device=self.device, threads=self.threads, **options)
        plan = make_plan(request)
        torch.set_num_threads(plan.threads)
        return plan


def loaded_model(plan: Plan) -> nn.Module:
    """The model with the weights of the plan's checkpoint, in eval mode, on the plan's device."""
    assert plan.loaded is not None
    return plan.loaded.to(plan.device).eval()


@dataclass(frozen=True, kw_only=True)
class ResumableStudy(ModelStudy):
    """A study that trains models and can keep them, so that it continues after an interruption."""

    out: str | None = None  # folder that keeps the trainings, so that a stopped study continues; none: no folder

    def plan(self, **options: Any) -> Plan:
        return super().plan(**options) if self.out is None else super().plan(**options, out=Path(self.out))

    def trained(self, plan: Plan, seed: int) -> nn.Module:
        """The model of a training, in eval mode; it is read from the folder `out` if it is finished there."""
        if self.out is None:
            loop, _ = loop_of(plan, plan.new_model(seed), seed)
            return loop.run()[0].eval()
        return train_seed(plan, seed).eval()
