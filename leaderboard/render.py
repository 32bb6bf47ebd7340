"""Renders tables as text (markdown, plain columns, LaTeX, CSV, JSON), and formats accuracies, threats and verdicts."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Literal

from tabulate import tabulate

from bench.core.config import CORRUPTIONS
from bench.core.example_table import Threat
from bench.core.records import VERDICTS
from leaderboard.terminal_table import fitted_table, wrap

Format = Literal["markdown", "csv", "latex", "json"]
STYLES = {"markdown": "github", "plain": "plain", "latex": "latex_booktabs"}
ALIGNMENTS = {"l": "left", "r": "right", "c": "center"}


def render(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    form: Format | Literal["plain"] = "markdown",
    align: str = "",
    width: int | None = None,
    keys: int = 1,
) -> str:
    """A table as text without a trailing newline.

    header: empty for none. form: CSV and JSON (a list of objects) keep cells as they are, and None is an empty CSV
    cell; the other formats show every cell as text. align: a letter (l, r, c) for each column, as in LaTeX; all left if
    empty. width: the terminal's columns that a markdown table should fit; None for the width that the cells need.
    keys: the number of leading columns that identify a row, for a table that does not fit.
    """
    if form == "json":
        return json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1)
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        return text.getvalue().rstrip("\n")
    if form == "markdown" and width is not None:
        return fitted_table(header, [list(map(str, row)) for row in rows], align or "l" * len(header), width, keys)
    columns = [ALIGNMENTS[letter] for letter in align] if rows and align else None
    return tabulate(rows, header, tablefmt=STYLES[form], colalign=columns, disable_numparse=True)


def terminal_width() -> int | None:
    """The number of columns if standard output is a terminal; None if it is a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int | None, indent: str = "  ") -> str:
    """Wrap each line of a text at `width` characters, with continuation lines indented; None: unchanged."""
    if width is None:
        return text
    lines = []
    for line in text.splitlines():
        first = line[: len(line) - len(line.lstrip())]
        parts = wrap(line, width - len(first + indent))
        lines += [first + parts[0], *(first + indent + part for part in parts[1:])] if parts else [""]
    return "\n".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def compact(count: float) -> str:
    """A number with three significant digits and a unit: `86.2k`, `1.85M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{float(f'{count / size:.3g}'):g}{unit}"
    return f"{count:.3g}"


def interval(ci95: tuple[float, float]) -> str:
    return f"[{percent(ci95[0])}, {percent(ci95[1])}]"


def rank_range(low: int, high: int) -> str:
    """`3`, or `2-5` if the tests leave several ranks open."""
    return str(low) if low == high else f"{low}-{high}"


def threat_name(threat: Threat) -> str:
    """The threat model in the usual notation: `Linf 8/255`, `L2 0.5`; without eps for corruptions."""
    if threat.norm == CORRUPTIONS:
        return CORRUPTIONS
    levels = threat.eps * 255
    whole = round(levels)
    as_levels = threat.norm == "Linf" and 1 <= whole <= 32 and abs(levels - whole) < 1e-6
    return f"{threat.norm} {f'{whole}/255' if as_levels else f'{threat.eps:g}'}{'' if threat.box else ', no box'}"


def verdict_text(verdict: str) -> str:
    """`no warning signs` for the key `no-warnings`; an unknown verdict unchanged."""
    return VERDICTS.get(verdict, verdict)
