"""Tables that fit a terminal: cells are wrapped between words, and columns that do not fit go into another part."""

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

GAP = 2  # spaces between columns
LONG = 16  # characters: a longer word may be broken after `:`, `,` and `/`
HARD = 8  # minimum width of a column in characters, however many columns there are
PLACE = {"l": str.ljust, "r": str.rjust, "c": str.center}

Grid = Sequence[Sequence[str]]


def fitted_table(header: Sequence[str], rows: Grid, align: str, width: int, keys: int) -> str:
    """Format a table in which no line has more than `width` characters.

    align: a letter (l, r, c) for each column. keys: the number of leading columns that identify a row; they are
    repeated in each part of the table. If the table does not fit, a column with one value is a line above it.
    """
    table = [header, *rows]
    natural = [max(map(len, column)) for column in zip(*table, strict=True)]
    constant = [i for i in range(keys, len(header)) if len(rows) > 1 and len({row[i] for row in rows}) == 1]
    if _total(natural) > width and constant:
        kept = [i for i in range(len(header)) if i not in constant]
        common = "; ".join(f"{header[i]}: {rows[0][i]}" for i in constant if rows[0][i])
        rest = [[row[i] for i in kept] for row in table]
        fitted = fitted_table(rest[0], rest[1:], "".join(align[i] for i in kept), width, keys)
        return "\n".join([*wrap(common, width), *([""] if common else []), fitted])
    least = [_least(column) for column in zip(*table, strict=True)]
    room = max(HARD, width - _total(least[:keys]) - GAP)
    least = least[:keys] + [min(each, room) for each in least[keys:]]
    parts = []
    for chosen in [range(len(header))] if _total(natural) <= width else _parts(least, width, keys):
        widths = _widened([least[i] for i in chosen], [natural[i] for i in chosen], width)
        parts.append(_part([[row[i] for i in chosen] for row in table], [align[i] for i in chosen], widths))
    return "\n\n".join(parts)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, broken between words; `[59.5, 69.7]` counts as one word."""
    lines: list[str] = []
    for gap, piece in _pieces(text):
        if lines and len(lines[-1]) + len(gap) + len(piece) <= width:
            lines[-1] += gap + piece
        else:
            lines += [piece[i : i + width] for i in range(0, len(piece), width)]
    return lines


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield (separator before it on the same line, piece)."""
    for word in re.findall(r"\[[^\]]*\]\S*|\S+", text):
        parts = re.findall(r"[^:,/]*[:,/]*", word) if len(word) > LONG and word[0] != "[" else [word]
        for i, part in enumerate(filter(None, parts)):
            yield "" if i else " ", part


def _least(column: Sequence[str]) -> int:
    return max((len(piece) for cell in column for _, piece in _pieces(cell)), default=1)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _parts(least: Sequence[int], width: int, keys: int) -> Iterator[list[int]]:
    """The columns of each part: the keys, and as many others as fit."""
    part = list(range(keys))
    for i in range(keys, len(least)):
        if len(part) > keys and _total([least[j] for j in [*part, i]]) > width:
            yield part
            part = list(range(keys))
        part.append(i)
    yield part


def _widened(least: Sequence[int], natural: Sequence[int], width: int) -> list[int]:
    """Distribute the remaining room, in turn, to columns that are narrower than their longest cell."""
    widths = list(least)
    while _total(widths) < width and any(a < b for a, b in zip(widths, natural, strict=True)):
        for i in range(len(widths)):
            if widths[i] < natural[i] and _total(widths) < width:
                widths[i] += 1
    return widths


def _part(table: Grid, align: Sequence[str], widths: Sequence[int]) -> str:
    """The header, a rule and the rows, each as high as its highest cell."""
    lines = []
    for row in table:
        cells = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in zip_longest(*cells, fillvalue=""):
            placed = [PLACE[a](text, width) for a, text, width in zip(align, line, widths, strict=True)]
            lines.append((" " * GAP).join(placed).rstrip())
        if row is table[0]:
            lines.append((" " * GAP).join("-" * width for width in widths))
    return "\n".join(lines)
