"""The style of all studies' figures: line styles, and colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import UserError
from bench.core.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito (2008), without their yellow, which is too bright for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))


def check_figure(file: str) -> None:
    """UserError if `file` cannot be written or matplotlib is missing; a study calls this before it computes."""
    path = Path(file)
    if path.suffix not in FORMATS:
        raise UserError(f"figure {path} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"figure {path}: there is no folder {path.parent}; make it, or name another")
    if path.is_dir():
        raise UserError(f"figure {path} is a folder; name a file")
    import_extra("matplotlib", "plots", "a figure")


@contextmanager
def new_figure(file: str, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of `width` by `height` inches to draw in; it is saved as `file` at the end of the block."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "axes.prop_cycle": cycler(color=COLOURS, linestyle=LINES), "axes.grid": False, "grid.alpha": 0.3,
        "figure.constrained_layout.use": True, "legend.fontsize": "small", "savefig.dpi": 150,
        "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none",
    }  # fmt: skip
    with rc_context(style):
        canvas = Figure(figsize=(width, height))
        yield canvas
        canvas.savefig(file)
