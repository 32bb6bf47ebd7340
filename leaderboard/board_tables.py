"""A board as markdown, CSV, LaTeX (booktabs) or JSON. The page (leaderboard/page.py) shows the same."""

import re
from collections.abc import Callable, Sequence

import msgspec

from leaderboard.board_data import NOT_RECHECKABLE, Board, Estimate, Row
from leaderboard.render import Format, interval, percent, render, verdict_text

HEADERS = ("rank", "entry", "architecture", "clean", "certified", "attacked", "over seeds", "verdict", "status")
ALIGN = "rllrrrrll"
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
        return render(CSV_HEADERS, [_csv_cells(board.suite, row) for board in boards for row in board.rows], "csv")
    return "\n\n".join((_markdown if form == "markdown" else _latex)(board) for board in boards)


def rank_text(row: Row) -> str:
    """`3`, `2-5` if the tests leave several ranks open, `-` if no rank is claimed."""
    if row.rank is None:
        return "-"
    return str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low}-{row.rank_high}"


def _cells(row: Row, escape: Callable[[str], str] = str) -> list[str]:
    """The cells of HEADERS. `escape` is applied to the text that an entry brings."""
    spread = row.attacked.spread if row.attacked else None
    return [
        rank_text(row),
        escape(" ".join(row.title.split())),
        escape(row.architecture),
        _accuracy(row.clean),
        _accuracy(row.certified),
        _accuracy(row.attacked),
        "" if spread is None else f"+- {percent(spread)} ({len(row.seeds)})",
        verdict_text(row.verdict),
        row.status,
    ]


def _accuracy(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.low == estimate.high:  # reported without the number of examples
        return percent(estimate.acc)
    return f"{percent(estimate.acc)} {interval((estimate.low, estimate.high))}"


def _markdown(board: Board) -> str:
    table = render(HEADERS, [_cells(row, _escape) for row in board.rows], "markdown", ALIGN)
    return "\n\n".join([f"## {board.suite}", board.summary, table, board.rule, *_status_note(board)])


def _escape(text: str) -> str:
    """Text of an entry as a cell of markdown: it cannot make a column, a link, HTML or emphasis."""
    return re.sub(r"([\\`*_\[\]<>|#!&])", r"\\\1", text)


def _status_note(board: Board) -> list[str]:
    """What `not re-checkable` means, if an entry of the board is that."""
    return [NOT_RECHECKABLE] if any(row.status == "not re-checkable" for row in board.rows) else []


def _latex(board: Board) -> str:
    """booktabs, with a wider gap before each group of entries that a better entry significantly exceeds."""
    lines = render(HEADERS, [_cells(row) for row in board.rows], "latex", ALIGN).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("\\midrule")) + 1
    group, below = 0, 0
    for row, at in reversed(list(zip(board.rows, range(first, len(lines)), strict=False))):
        if row.group is not None:
            if group > row.group:
                lines.insert(below, "\\addlinespace")
            group, below = row.group, at
    return "\n".join([*(f"% {text}" for text in [f"{board.suite}: {board.rule}", *_status_note(board)]), *lines])


def _csv_cells(suite: str, row: Row) -> list[object]:
    """The cells of CSV_HEADERS; accuracies are fractions."""
    cost, spread = row.cost, row.attacked.spread if row.attacked else None
    return [
        suite, row.name, _no_formula(row.title), row.kind, row.status, row.rank, row.rank_low, row.rank_high,
        row.group, row.dataset, row.norm, row.eps, _no_formula(row.architecture), row.parameters, row.extra_data,
        len(row.seeds), min((seed.n_examples for seed in row.seeds), default=None), *_ends(row.clean),
        *_ends(row.certified), *_ends(row.attacked), spread, row.verdict, cost and cost.training_seconds,
        cost and cost.training_passes, cost and cost.evaluation_passes, _no_formula(row.paper), _no_formula(row.url),
        _no_formula(row.licence),
    ]  # fmt: skip


def _ends(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.acc, estimate.low, estimate.high)


def _no_formula(text: str | None) -> str | None:
    """Text that no spreadsheet evaluates as a formula."""
    return f"'{text}" if text and text[0] in "=+-@\t\r" else text
