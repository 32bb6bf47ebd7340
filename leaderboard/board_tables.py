"""A board as markdown, CSV, LaTeX (booktabs) or JSON. The page (leaderboard/page.py) shows the same."""

from collections.abc import Callable, Sequence

import msgspec

from leaderboard.board_data import INTERVALS, STATUS_NOTES, Board, Cost, Row
from leaderboard.estimates import Estimate, accuracy_text, open_text
from leaderboard.render import Format, compact, rank_range, render, verdict_text, wrapped
from leaderboard.training_passes import BOUNDS_NOTE
from leaderboard.untrusted_text import as_markdown, no_formula

HEADERS = (
    "rank", "entry", "architecture", "parameters", "epochs", "passes", "clean %", "certified %", "certificates",
    "attacked %", "attacked by", "open", "interval of", "verdict", "trained", "status",
)  # fmt: skip
ALIGN = "rllrrrrrlrlrllll"
REPORTED_POSITION = (
    "(n) is the position of a reported entry among the reported ones, by an accuracy that is not verified; it is not a "
    "rank."
)
UNRANKED = "Entries without a rank:"  # the rule of the board says why
LONGEST_REASONS = 40  # characters
METRICS = ("clean", "certified", "attacked")
ENDS = ("", "_low", "_high", "_spread", "_new_seed_low", "_new_seed_high")
KINDS = tuple(f"certificates_{kind}" for kind in ("proven", "again", "solver", "open", "unchecked"))
CSV_HEADERS = (
    "suite", "name", "title", "kind", "status", "rank", "rank_low", "rank_high", "group", "position", "dataset", "norm",
    "eps", "architecture", "parameters", "extra_data", "data", "seeds", "n_examples", "interval_of",
    *(f"{metric}{end}" for metric in METRICS for end in ENDS), *KINDS, "attacked_by", "open", "truncated", "verdict",
    "trained",
    "training_epochs", "training_seconds", "training_passes", "evaluation_passes", "paper", "url", "code",
    "licence",
)  # fmt: skip


def render_boards(boards: Sequence[Board], form: Format, width: int | None = None) -> str:
    """Render the boards. width: of the terminal that markdown should fit; None for plain markdown."""
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(list(boards)), indent=1).decode()
    if form == "csv":
        return render(CSV_HEADERS, [_csv_cells(board.suite, row) for board in boards for row in board.rows], "csv")
    return "\n\n".join(_markdown(board, width) if form == "markdown" else _latex(board) for board in boards)


def rank_text(row: Row) -> str:
    """`3`, `2-5` if the tests leave several ranks open, `(7)` for a position as reported, `-` if no rank is claimed.

    The rank of fixed weights is marked, because it is not the rank of a recipe: `1 (weights)`.
    """
    if row.rank is None or row.rank_low is None or row.rank_high is None:
        return "-" if row.position is None else f"({row.position})"
    ends = rank_range(row.rank_low, row.rank_high)
    return f"{ends} (weights)" if row.kind == "weights" else ends


def _cells(row: Row, escape: Callable[[str], str] = str) -> list[str]:
    """The cells of HEADERS. `escape` is applied to text from an entry."""
    cost = row.cost
    return [
        rank_text(row), escape(_title(row)), escape(row.architecture),
        "" if row.parameters is None else compact(row.parameters),
        "" if cost is None or cost.training_epochs is None else f"{cost.training_epochs:g}",
        _passes(cost),
        accuracy_text(row.clean), accuracy_text(row.certified),
        "" if row.certificates is None else row.certificates.as_text(),
        accuracy_text(row.attacked), escape(", ".join(row.attacked_by)),
        open_text(row.open, row.truncated), _interval_of(row),
        f"{verdict_text(row.verdict)}{escape(_reasons(row))}", row.trained or "", row.status,
    ]  # fmt: skip


def _title(row: Row) -> str:
    """The title; for a reported entry also its additional data, and its key, because titles of papers repeat."""
    title = " ".join(row.title.split())
    if row.kind != "reported":
        return title
    return f"{title} ({row.name}{'' if row.data in (None, 'none') else f'; data: {row.data}'})"


def _reasons(row: Row) -> str:
    """The names of the checks that made an entry suspect, ` (bracket-better)`; nothing if they do not fit the cell."""
    names = ", ".join(dict.fromkeys(" ".join(reason.partition(":")[0].split()) for reason in row.reasons))
    return f" ({names})" if row.verdict == "suspect" and 0 < len(names) <= LONGEST_REASONS else ""


def _passes(cost: Cost | None) -> str:
    """The training passes; `-` if they do not measure the work, which a note below the board explains."""
    if cost is not None and cost.training_passes is not None:
        return compact(cost.training_passes)
    return "-" if cost is not None and cost.computes_bounds else ""


def _interval_of(row: Row) -> str:
    """Which intervals the accuracies have: `recipe, 3 seeds`, `weights`, or none."""
    what = row.clean.interval_of if row.clean is not None else None
    return f"recipe, {len(row.seeds)} seeds" if what == "recipe" else what or ""


def _markdown(board: Board, width: int | None) -> str:
    def table(rows: Sequence[Row]) -> str:
        cells = [_cells(row, as_markdown if width is None else str) for row in rows]
        return render(HEADERS, cells, "markdown", ALIGN, width, keys=2)

    ranked, others = ([row for row in board.rows if (row.rank is not None) == has] for has in (True, False))
    tables = [table(ranked)] if ranked or not others else []
    tables += [wrapped(UNRANKED, width, ""), table(others)] if others else []
    left_out = board.left_out if width is not None else map(as_markdown, board.left_out)
    texts = [wrapped(text, width, "") for text in (*left_out, board.rule, INTERVALS, *_notes(board))]
    return "\n\n".join([f"## {board.suite}", wrapped(board.summary, width, ""), *tables, *texts])


def _notes(board: Board) -> list[str]:
    """Explain statuses, passes `-` and positions in parentheses, if an entry of the board has one."""
    notes = [note for status, note in STATUS_NOTES.items() if any(row.status == status for row in board.rows)]
    if any(row.cost is not None and row.cost.computes_bounds for row in board.rows):
        notes.append(f"Passes `-`: the training {BOUNDS_NOTE}.")
    return notes + ([REPORTED_POSITION] if any(row.position is not None for row in board.rows) else [])


def _latex(board: Board) -> str:
    """Render with booktabs: a wider gap before each group of entries that a better entry significantly exceeds, and a
    rule before the entries without a rank.
    """
    lines = render(HEADERS, [_cells(row) for row in board.rows], "latex", ALIGN).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("\\midrule")) + 1
    unranked = next((at for at, row in enumerate(board.rows) if row.rank is None), 0)
    if unranked:
        lines.insert(first + unranked, "\\midrule")
    group, below, notes = 0, 0, [*board.left_out, INTERVALS, *_notes(board)]
    for row, at in reversed(list(zip(board.rows, range(first, len(lines)), strict=False))):
        if row.group is not None:
            if group > row.group:
                lines.insert(below, "\\addlinespace")
            group, below = row.group, at
    return "\n".join([*(f"% {text}" for text in [f"{board.suite}: {board.rule}", *notes]), *lines])


def _csv_cells(suite: str, row: Row) -> list[object]:
    """The cells of CSV_HEADERS; accuracies are fractions."""
    cost = row.cost
    return [
        suite, no_formula(row.name), no_formula(row.title), row.kind, row.status, row.rank, row.rank_low, row.rank_high,
        row.group, row.position, row.dataset, row.norm, row.eps, no_formula(row.architecture), row.parameters,
        row.extra_data, row.data, len(row.seeds), min((seed.n_examples for seed in row.seeds), default=None),
        row.clean and row.clean.interval_of,
        *(end for metric in METRICS for end in _ends(getattr(row, metric))),
        *(row.certificates and getattr(row.certificates, kind.removeprefix("certificates_")) for kind in KINDS),
        no_formula(", ".join(row.attacked_by)),
        row.open, row.truncated, row.verdict, row.trained, cost and cost.training_epochs,
        cost and cost.training_seconds, cost and cost.training_passes, cost and cost.evaluation_passes,
        no_formula(row.paper), no_formula(row.url), no_formula(row.code),
        no_formula(row.licence),
    ]  # fmt: skip


def _ends(estimate: Estimate | None) -> tuple[float | None, ...]:
    """The values of ENDS."""
    if estimate is None:
        return (None,) * len(ENDS)
    return (estimate.acc, estimate.low, estimate.high, estimate.spread, *(estimate.new_seed or (None, None)))
