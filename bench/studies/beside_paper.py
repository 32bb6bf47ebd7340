"""Our figures beside a paper's, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tabulate import tabulate

from bench.studies.references import Block, Cell, Reference

Form = Literal["markdown", "csv", "json"]


@dataclass(frozen=True)
class Line:
    """One figure of ours, and the cell of the table that it is to be compared with, where there is one."""

    block: Block
    row: str
    name: str
    by: str
    ours: float
    cell: Cell | None


def for_people(reference: Reference, lines: Sequence[Line], missing: Sequence[tuple[str, str]], whole: bool) -> str:
    numbers: dict[str, int] = {}
    rows = []
    for line in lines:
        cell = line.cell
        digits = ".4f" if line.name.startswith(("ACB", "T_PEC /")) else ".2f"
        told = [line.block.title, line.row, line.name, line.by, f"{line.ours:{digits}}"]
        if cell is not None:
            verdict = [cell.verdict(line.ours)] if whole else []
            right = [] if cell.right is None else [f"(right: {cell.right:{digits}})"]
            marks = [f"[{numbers.setdefault(f'{n.kind}: {n.reason}', len(numbers) + 1)}]" for n in cell.notes]
            told += [f"{cell.printed:{digits}}", f"{line.ours - cell.printed:+z{digits}}"]
            told.append(" ".join([*verdict, *right, *marks]))
        rows.append(told + [""] * (8 - len(told)))
    headers = ["model", "row", "figure", "by", "ours", "paper", "difference", "verdict"]
    align = [*["left"] * 4, *["right"] * 3, "left"]
    parts = [
        f"{reference.title}: {reference.source}",
        tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True) if rows else "",
        "" if whole else "not all test examples: differences are another sample's, and nothing is called equal",
        "\n".join(f"[{number}] {note}" for note, number in numbers.items()),
    ]
    by_block: dict[str, list[str]] = {}
    for title, row in missing:
        by_block.setdefault(title, []).append(row)
    parts.append("\n".join(f"not available (no checkpoint): {title}: {', '.join(r)}" for title, r in by_block.items()))
    return "\n\n".join(part for part in parts if part)


def for_programs(lines: Sequence[Line], missing: Sequence[tuple[str, str]], form: Form, whole: bool) -> str:
    rows = [_plain(line, whole) for line in lines]
    if form == "json":
        absent = [{"block": title, "row": row} for title, row in missing]
        return json.dumps({"figures": rows, "not_available": absent}, indent=1)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _plain(line: Line, whole: bool) -> dict[str, Any]:
    cell, block = line.cell, line.block
    told: dict[str, Any] = {
        "dataset": block.dataset, "model": block.model, "norm": block.norm, "eps": block.eps, "row": line.row,
        "figure": line.name, "by": line.by, "ours": line.ours,
    }  # fmt: skip
    if cell is None:
        return told | dict.fromkeys(("paper", "right", "tolerance", "verdict", "notes"))
    return told | {
        "paper": cell.printed, "right": cell.right, "tolerance": cell.tolerance,
        "verdict": cell.verdict(line.ours) if whole else None,
        "notes": "; ".join(f"{note.kind}: {note.reason}" for note in cell.notes),
    }  # fmt: skip
