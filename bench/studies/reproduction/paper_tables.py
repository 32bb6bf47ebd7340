"""Tables as papers print them (leaderboard/expected), cell by cell, and known errors in them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Literal

import msgspec

Kind = Literal["misprint", "unsound", "leaked", "checkpoint", "reading", "open"]


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A remark on some cells: those in `columns`, in every row and block that matches the other fields.

    kind: `misprint`; `unsound` (claims more than is proven); `leaked` (trained on test labels); `checkpoint` (the
    published weights are not those of the table); `reading` (the column measures something else than its name says);
    `open` (not reproduced, for an unknown reason). right: the correct value, by row. certifier: the one that the
    authors used.
    """

    kind: Kind
    reason: str
    columns: tuple[str, ...]
    dataset: str | None = None
    model: str | None = None
    norm: str | None = None
    rows: tuple[str, ...] = ()  # default: those of `right`, or all rows if that is empty
    right: dict[str, float] = {}
    certifier: str | None = None

    def covers(self, block: Block, row: str, column: str) -> bool:
        filters = {"dataset": self.dataset, "model": self.model, "norm": self.norm}
        if any(value not in (None, getattr(block, name)) for name, value in filters.items()):
            return False
        rows = self.rows or tuple(self.right)
        return column in self.columns and (not rows or row in rows)


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The rows of one data set, model (a spec) and threat model. high: upper end of the search for the largest eps."""

    dataset: str
    model: str
    norm: str
    eps: float
    rows: dict[str, tuple[float, ...]]
    high: float | None = None

    @property
    def title(self) -> str:
        return f"{self.dataset}, {self.model}, {self.norm} {self.eps:.3g}"


class Cell(msgspec.Struct, frozen=True):
    """One printed number, with the notes on it."""

    column: str
    printed: float
    tolerance: float
    notes: tuple[Note, ...]
    right: float | None

    @property
    def certifier(self) -> str | None:
        return next((note.certifier for note in self.notes if note.certifier), None)

    def verdict(self, ours: float) -> str:
        """`equal` if ours matches the print, else the kind of the note that explains the difference, else `DIFFERS`."""
        if self._within(ours, self.printed):
            return "equal"
        # a leak affects our number too, and we measure with the note's certifier: neither explains a difference
        kind = next((note.kind for note in self.notes if note.kind != "leaked" and note.certifier is None), None)
        explained = kind is not None and (self.right is None or self._within(ours, self.right))
        return str(kind) if explained else "DIFFERS"

    def _within(self, ours: float, wanted: float) -> bool:
        return abs(ours - wanted) <= self.tolerance + 1e-9


class PaperTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of a paper as printed, shares in percent. tolerance: by column, or by a column's first word."""

    title: str
    source: str
    columns: tuple[str, ...]
    tolerance: dict[str, float]
    blocks: tuple[Block, ...]
    notes: tuple[Note, ...] = ()

    def cells(self, block: Block, row: str) -> Iterator[Cell]:
        for column, printed in zip(self.columns, block.rows[row], strict=True):
            notes = tuple(note for note in self.notes if note.covers(block, row, column))
            right = next((note.right[row] for note in notes if row in note.right), None)
            tolerance = self.tolerance.get(column, self.tolerance.get(column.split()[0], 0.0))
            yield Cell(column, printed, tolerance, notes, right)


def paper_table_names() -> list[str]:
    """All tables, such as `thesis-3.6`."""
    folder = files("leaderboard").joinpath("expected")
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def read_paper_table(name: str) -> PaperTable:
    """The table of that name; msgspec.ValidationError if its file is malformed."""
    text = files("leaderboard").joinpath("expected", f"{name}.toml").read_text(encoding="utf-8")
    return msgspec.toml.decode(text, type=PaperTable)
