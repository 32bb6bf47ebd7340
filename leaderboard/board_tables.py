"""A board as markdown, CSV, LaTeX (booktabs) or JSON. The page (leaderboard/page.py) shows the same."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence

import msgspec
from tabulate import tabulate

from leaderboard.board_data import Board, Estimate, Row
from leaderboard.run_tables import Format, interval, percent

HEADERS = ("rank", "entry", "architecture", "clean", "certified", "attacked", "over seeds", "verdict", "status")
CSV_HEADERS = (
    "suite", "name", "title", "kind", "status", "rank", "rank_low", "rank_high", "group", "dataset", "norm", "eps",
    "architecture", "parameters", "extra_data", "seeds", "n_examples", "clean", "clean_low", "clean_high", "certified",
    "certified_low", "certified_high", "attacked", "attacked_low", "attacked_high", "attacked_spread", "verdict",
    "training_seconds", "training_passes", "evaluation_passes", "paper", "url", "licence",
)  # fmt: skip


def render_boards(boards: Sequence[Board], form: Format) -> str:
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(list(boards)), indent=1).decode()
    if form == "csv":
        return _csv(boards)
    return "\n\n".join((_markdown if form == "markdown" else _latex)(board) for board in boards)


def rank_text(row: Row) -> str:
    """`3`, `2-5` where the tests leave more than one rank open, `-` where none is claimed."""
    if row.rank is None:
        return "-"
    return str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low}-{row.rank_high}"


def _cells(row: Row, escaped: Callable[[str], str] = str) -> list[str]:
    """The cells of HEADERS; what an entry says of itself goes through `escaped`."""
    spread = row.attacked.spread if row.attacked else None
    return [
        rank_text(row),
        escaped(" ".join(row.title.split())),
        escaped(row.architecture),
        _accuracy(row.clean),
        _accuracy(row.certified),
        _accuracy(row.attacked),
        "" if spread is None else f"+- {percent(spread)} ({len(row.seeds)})",
        row.verdict,
        row.status,
    ]


def _accuracy(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.low == estimate.high:  # reported, by whom no examples are known
        return percent(estimate.acc)
    return f"{percent(estimate.acc)} {interval((estimate.low, estimate.high))}"


def _markdown(board: Board) -> str:
    rows = [_cells(row, _escaped) for row in board.rows]
    align = ["right", "left", "left", *["right"] * 4, "left", "left"]
    table = tabulate(rows, HEADERS, tablefmt="github", colalign=align if rows else None, disable_numparse=True)
    return f"## {board.suite}\n\n{board.summary}\n\n{table}\n\n{board.rule}"


def _escaped(text: str) -> str:
    """Somebody's text as a cell of markdown: no column, link, HTML or emphasis of theirs."""
    return re.sub(r"([\\`*_\[\]<>|#!&])", r"\\\1", text)


def _latex(board: Board) -> str:
    """booktabs; a wider gap before each group that the leader of the one above is significantly better than."""
    lines = tabulate(
        [_cells(row) for row in board.rows], HEADERS, tablefmt="latex_booktabs", disable_numparse=True,
        colalign=["right", "left", "left", *["right"] * 4, "left", "left"] if board.rows else None,
    ).splitlines()  # fmt: skip
    first = next(i for i, line in enumerate(lines) if line.startswith("\\midrule")) + 1
    group, below = 0, 0
    for row, at in reversed(list(zip(board.rows, range(first, len(lines)), strict=False))):
        if row.group is not None:
            if group > row.group:
                lines.insert(below, "\\addlinespace")
            group, below = row.group, at
    return "\n".join([f"% {board.suite}: {board.rule}", *lines])


def _csv(boards: Sequence[Board]) -> str:
    """One line an entry, fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADERS)
    for board in boards:
        for row in board.rows:
            cost, attacked = row.cost, row.attacked
            writer.writerow([
                board.suite, row.name, _plain(row.title), row.kind, row.status, row.rank, row.rank_low, row.rank_high,
                row.group, row.dataset, row.norm, row.eps, _plain(row.architecture), row.parameters, row.extra_data,
                len(row.seeds), min((seed.n_examples for seed in row.seeds), default=None), *_ends(row.clean),
                *_ends(row.certified), *_ends(attacked), attacked.spread if attacked else None, row.verdict,
                cost.training_seconds if cost else None, cost.training_passes if cost else None,
                cost.evaluation_passes if cost else None, _plain(row.paper), _plain(row.url), _plain(row.licence),
            ])  # fmt: skip
    return out.getvalue().rstrip("\n")


def _ends(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.acc, estimate.low, estimate.high)


def _plain(text: str | None) -> str | None:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text and text[0] in "=+-@\t\r" else text
