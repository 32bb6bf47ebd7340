"""The contract of a study, and what several studies share: models to load or train, and figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.core.errors import UserError
from bench.runs.plan import Plan, make_plan
from bench.runs.request import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """An experiment that is neither a defense nor an attack. Its fields are the options of `bench study NAME --set`."""

    @abstractmethod
    def run(self) -> str:
        """Do the experiment; the report to print. UserError if an option is invalid, before any long computation."""


@dataclass(frozen=True, kw_only=True)
class ModelStudy(Study):
    """A study of models that are trained or loaded as `bench run` and `bench eval` do."""

    data_dir: str | None = None
    device: str = "auto"
    threads: int | None = None

    def plan(self, **options: Any) -> Plan:
        """The plan of a Request without attacks; sets the number of CPU threads."""
        data_dir = Path(self.data_dir) if self.data_dir else None
        request = Request(attacks=[], data_dir=data_dir, device=self.device, threads=self.threads, **options)
        plan = make_plan(request)
        torch.set_num_threads(plan.threads)
        return plan


def new_figure(file: str, width: float, height: float) -> Figure:
    """An empty figure of `width` by `height` inches, to be saved as `file` at the end of a study.

    UserError if `file` cannot be written or matplotlib is missing; so a study calls this before it computes.
    """
    path = Path(file)
    if path.suffix not in FORMATS:
        raise UserError(f"figure {path} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"figure {path}: there is no folder {path.parent}; make it, or name another")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib; install it with `pip install robust-bracket[plots]`") from error
    return Figure(figsize=(width, height), layout="constrained")
