"""Figures by matplotlib, if it is installed, without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


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
