"""Tables as text: markdown, plain columns, LaTeX (booktabs), CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

from tabulate import tabulate

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
