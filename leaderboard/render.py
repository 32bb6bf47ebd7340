"""Tables as text (markdown, plain columns, LaTeX, CSV, JSON), and how they show accuracies, threats and verdicts."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

from tabulate import tabulate

from bench.core.example_table import Threat
from bench.core.records import VERDICTS

Format = Literal["markdown", "csv", "latex", "json"]
STYLES = {"markdown": "github", "plain": "plain", "latex": "latex_booktabs"}
ALIGNMENTS = {"l": "left", "r": "right", "c": "center"}


def render(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    form: Format | Literal["plain"] = "markdown",
    align: str = "",
) -> str:
    """A table as text without a trailing newline.

    header: empty for none. align: a letter (l, r, c) for each column, as in LaTeX; all left if empty. CSV and JSON (a
    list of objects) keep cells as they are, and None is an empty CSV cell; the other formats show every cell as text.
    """
    if form == "json":
        return json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1)
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        return text.getvalue().rstrip("\n")
    columns = [ALIGNMENTS[letter] for letter in align] if rows and align else None
    return tabulate(rows, header, tablefmt=STYLES[form], colalign=columns, disable_numparse=True)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval(ci95: tuple[float, float]) -> str:
    return f"[{percent(ci95[0])}, {percent(ci95[1])}]"


def threat_name(threat: Threat) -> str:
    """The threat model in the usual notation: `Linf 8/255`, `L2 0.5`."""
    levels = threat.eps * 255
    whole = round(levels)
    as_levels = threat.norm == "Linf" and 1 <= whole <= 32 and abs(levels - whole) < 1e-6
    return f"{threat.norm} {f'{whole}/255' if as_levels else f'{threat.eps:g}'}"


def verdict_text(verdict: str) -> str:
    """`no warning signs` for the key `no-warnings`; an unknown verdict as it is."""
    return VERDICTS.get(verdict, verdict)
