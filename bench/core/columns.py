"""Formats text in aligned columns. The last column is wrapped at words, so that lines fit the terminal."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

GAP = "  "
NARROWEST = 20  # characters of the last column; on a narrower terminal lines are too long


def columns(rows: Sequence[Sequence[str]], *, indent: str = "") -> str:
    """Format rows as aligned columns. On a terminal the last column is wrapped; elsewhere a row is one line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    space = max(output_width() - len(indent) - sum(width + len(GAP) for width in widths), NARROWEST)
    lines = []
    for row in rows:
        head = indent + "".join(f"{cell:<{width}}{GAP}" for cell, width in zip(row[:-1], widths, strict=True))
        wrapped = textwrap.wrap(row[-1], space, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"{head}{wrapped[0]}".rstrip(), *(f"{'':{len(head)}}{line}" for line in wrapped[1:])]
    return "\n".join(lines)


def output_width() -> int:
    """The width of the terminal on standard output; a very large one if there is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
