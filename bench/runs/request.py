"""What the user asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `bench run` or `bench eval`. None means the suite's value."""

    defense: str | None = None
    checkpoint: Path | None = None
    suite: str | None = None
    dataset: str | None = None
    model: str | None = None
    norm: str | None = None
    eps: Sequence[float] | None = None  # the first is the threat model's; every attack also runs at the others
    attacks: Sequence[str] | None = None  # None with a bracket: only the bracket's
    certifiers: Sequence[str] = ()
    bracket: float | None = None  # its budget in seconds; None for no bracket
    n_examples: int | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    threads: int | None = None
    plugins: Sequence[Path] = ()
    data_dir: Path | None = None
    out: Path = Path("runs")
