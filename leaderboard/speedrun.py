"""`bench leaderboard --speedrun`: the fewest training passes whose robust accuracy is at least a target.

The rules are in docs/speedrun.md. A reproduction is needed, because only a training shows how many passes it takes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import special

from bench.core.config import suites
from bench.core.errors import UserError
from leaderboard.board_data import Board, Row
from leaderboard.render import Format, compact, render

SEEDS, LEVEL = 5, 0.01
HEADERS = (
    "target %", "place", "entry", "seeds", "attacked %", "p", "training passes", "training s", "machine", "commit",
)  # fmt: skip
ALIGN = "rrlrrrrrll"
RULE = (
    f"A record has the fewest training passes (forward and backward passes of single examples) among the entries with "
    f"at least {SEEDS} seeds whose mean accuracy under attack exceeds the target by a one-sided t-test over the seeds "
    f"(p < {LEVEL:g}), that classify an image by one network, whose training computes no bounds (they are not counted "
    "as passes), that have no warning signs and no extra data, and that somebody else has trained again. Places are by "
    "passes; seconds depend on the machine."
)


def p_above(accuracies: Sequence[float], target: float, n: int) -> float:
    """The p-value of the one-sided t-test of `mean <= target`, for k >= 2 seeds on n examples.

    The standard deviation over seeds is at least 1 / n, as in all tests of leaderboard/significance.py.
    """
    values = np.asarray(accuracies, dtype=float)
    spread = max(float(values.std(ddof=1)), 1 / n)
    t = (values.mean() - target) / (spread / np.sqrt(len(values)))
    return float(1 - special.stdtr(len(values) - 1, t))


def speedrun(board: Board) -> dict[float, list[tuple[Row, float]]]:
    """For each target of the board's suite the entries that reach it, with their p-values, the fewest passes first."""
    return {
        target: sorted(_reached(board.rows, target), key=lambda found: _passes(found[0]))
        for target in _targets(board.suite)
    }


def _targets(suite: str) -> tuple[float, ...]:
    known = suites().get(suite)
    return () if known is None else known.speedrun_targets


def _reached(rows: Sequence[Row], target: float) -> Iterator[tuple[Row, float]]:
    for row in rows:
        attacked = [seed.attacked for seed in row.seeds if seed.attacked is not None]
        cost = row.cost
        trained = row.trained == "reproduced" and cost is not None and cost.training_passes is not None
        allowed = row.verdict == "no-warnings" and not row.extra_data and cost is not None and cost.networks == 1
        if not trained or not allowed or len(attacked) < SEEDS:
            continue
        p = p_above(attacked, target, min(seed.n_examples for seed in row.seeds))
        if p < LEVEL:
            yield row, p


def _passes(row: Row) -> float:
    assert row.cost is not None
    assert row.cost.training_passes is not None
    return row.cost.training_passes


def render_speedrun(boards: Sequence[Board], form: Format, width: int | None = None) -> str:
    """Render a ranking table for each suite and target; a target that no entry reaches is one line.

    UserError if none of the suites has targets.
    """
    if not any(_targets(board.suite) for board in boards):
        have = ", ".join(name for name, suite in suites().items() if suite.speedrun_targets)
        raise UserError(f"{', '.join(board.suite for board in boards)}: no targets for a speed run; {have} have some")
    lines: list[list[object]] = []
    unreached: list[str] = []
    for board in boards:
        for target, found in speedrun(board).items():
            lines += [_cells(board, target, place, *each, form) for place, each in enumerate(found, 1)]
            if not found:
                unreached.append(f"No entry of {board.suite} reaches {100 * target:g} %.")
    table = render(("suite", *HEADERS), lines, form, f"l{ALIGN}", width, keys=4)
    return table if form in ("csv", "json") else "\n\n".join([table, *unreached, RULE])


def _cells(board: Board, target: float, place: int, row: Row, p: float, form: Format) -> list[object]:
    """The cells of HEADERS after that of the suite; the passes in full in formats for programs."""
    assert row.attacked is not None
    assert row.cost is not None
    seconds = row.cost.training_seconds
    commit = row.seeds[0].provenance.get("git_commit", "")[:12]
    return [
        board.suite, f"{100 * target:g}", place, row.name, len(row.seeds),
        f"{100 * row.attacked.acc:.1f} +- {100 * (row.attacked.spread or 0.0):.1f}", f"{p:.2g}",
        f"{_passes(row):.0f}" if form in ("csv", "json") else compact(_passes(row)),
        "" if seconds is None else f"{seconds:.1f}", row.cost.hardware, commit,
    ]  # fmt: skip
