"""The contract of a study."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """An experiment that is neither a defense nor an attack. Its fields are the options of `bench study NAME --set`."""

    @abstractmethod
    def run(self) -> str:
        """Do the experiment; the report to print. UserError if an option is invalid, before any long computation."""
