"""Figures of studies, by matplotlib where it is installed, and without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def new_figure(path: Path, width: float, height: float) -> Figure:
    """An empty figure of so many inches that is to be saved at `path`; UserError where that cannot be.

    A study that computes for long asks for it first.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"figure {path} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"figure {path}: there is no folder {path.parent}; make it, or name another")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib; install it with `pip install robust-bracket[plots]`") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
