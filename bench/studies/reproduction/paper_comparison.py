"""Our figures beside a paper's: Markdown for people, CSV and JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.studies.reproduction.paper_tables import Block, Cell, PaperTable
from leaderboard.render import render

Form = Literal["markdown", "csv", "json"]
HEADERS = ["model", "row", "figure", "by", "ours", "paper", "difference", "verdict"]


@dataclass(frozen=True)
class Figure:
    """A measured number, and the paper's cell to compare it with; None if the paper does not report it.

    run: the run that trained the weights; None for the paper's own weights, or if all rows of a table are trained here.
    """

    block: Block
    row: str
    name: str
    by: str
    ours: float
    cell: Cell | None
    run: str | None = None


@dataclass(frozen=True)
class Comparison:
    """All figures of one table. missing: (block, row) without weights.

    complete: measured on all test examples; otherwise no verdict is given. Figures of a run have no verdict either,
    because its weights are not the paper's.
    """

    table: PaperTable
    figures: Sequence[Figure]
    missing: Sequence[tuple[str, str]]
    complete: bool

    def as_text(self, form: Form) -> str:
        if form == "markdown":
            return self._markdown()
        rows = [self._fields(figure) for figure in self.figures]
        if form == "json":
            absent = [{"block": title, "row": row} for title, row in self.missing]
            return json.dumps({"figures": rows, "not_available": absent}, indent=1)
        return render(list(rows[0]) if rows else [], [list(row.values()) for row in rows], "csv")

    def _markdown(self) -> str:
        notes: dict[str, int] = {}  # the number of each note
        some_run = any(figure.run for figure in self.figures)
        rows = [
            [*self._cells(figure, notes), *([figure.run or "checkpoint"] if some_run else [])]
            for figure in self.figures
        ]
        by_block: dict[str, list[str]] = {}
        for title, row in self.missing:
            by_block.setdefault(title, []).append(row)
        parts = [
            f"{self.table.title}: {self.table.source}",
            render([*HEADERS, *(["weights"] if some_run else [])], rows, align="llllrrrl" + "l" * some_run)
            if rows
            else "",
            "" if self.complete else "not all test examples were measured, so there are no verdicts",
            "\n".join(f"[{number}] {note}" for note, number in notes.items()),
            "\n".join(f"not available (no weights): {title}: {', '.join(r)}" for title, r in by_block.items()),
        ]
        return "\n\n".join(part for part in parts if part)

    def _cells(self, figure: Figure, notes: dict[str, int]) -> list[str]:
        cell = figure.cell
        digits = ".4f" if figure.name.startswith(("ACB", "T_PEC /")) else ".2f"
        ours = [figure.block.title, figure.row, figure.name, figure.by, f"{figure.ours:{digits}}"]
        if cell is None:
            return [*ours, "", "", ""]
        verdict = [cell.verdict(figure.ours)] if self._judged(figure) else []
        right = [] if cell.right is None else [f"(right: {cell.right:{digits}})"]
        marks = [f"[{notes.setdefault(f'{note.kind}: {note.reason}', len(notes) + 1)}]" for note in cell.notes]
        difference = f"{figure.ours - cell.printed:+z{digits}}"
        return [*ours, f"{cell.printed:{digits}}", difference, " ".join([*verdict, *right, *marks])]

    def _judged(self, figure: Figure) -> bool:
        return self.complete and figure.run is None

    def _fields(self, figure: Figure) -> dict[str, Any]:
        cell, block = figure.cell, figure.block
        ours = {
            "dataset": block.dataset, "model": block.model, "norm": block.norm, "eps": block.eps, "row": figure.row,
            "figure": figure.name, "by": figure.by, "ours": figure.ours, "run": figure.run,
        }  # fmt: skip
        if cell is None:
            return ours | dict.fromkeys(("paper", "right", "tolerance", "verdict", "notes"))
        return ours | {
            "paper": cell.printed, "right": cell.right, "tolerance": cell.tolerance,
            "verdict": cell.verdict(figure.ours) if self._judged(figure) else None,
            "notes": "; ".join(f"{note.kind}: {note.reason}" for note in cell.notes),
        }  # fmt: skip
