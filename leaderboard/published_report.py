"""What `bench show` adds for a published run: its contests, and what its verification derived."""

from collections.abc import Iterator
from pathlib import Path

from bench.core.counts import counted
from bench.core.example_table import Accuracy, accuracy
from leaderboard.published_results import CONTESTS, EvaluatedRun, read_evaluated_run
from leaderboard.verification_files import CHECKED

NAMED = 12  # examples of a contest that are listed


def read_published(folder: Path) -> EvaluatedRun | None:
    """The run as a board counts it; None if the folder has no contests and no checked.json."""
    published = (folder / CHECKED).exists() or (folder / CONTESTS).is_dir()
    return read_evaluated_run(folder) if published else None


def after_contests(run: EvaluatedRun | None) -> Accuracy | None:
    """The accuracy under attack that a board shows; None without a contest."""
    return None if run is None or not run.contests else accuracy(run.robust)


def published_lines(run: EvaluatedRun) -> Iterator[str]:
    """A line for each contest, and one or two for checked.json."""
    for contest in run.contests:
        n = len(contest.broken)
        named = ", ".join(map(str, contest.broken[:NAMED])) + (", ..." if n > NAMED else "")
        what = f"broke {counted(n, 'example')} that the run counts as robust ({named})"
        yield f"contest: {contest.by} {what}, {contest.finished[:10]}"
    if (checked := run.checked) is None:
        return
    again = ", ".join(f"{spec} ({len(e.fell)} of {e.attacked} fell)" for spec, e in checked.columns.items()) or "none"
    yield (
        f"{CHECKED}: robust examples were attacked again by {checked.attack}, seed {checked.seed}; attacks of the run "
        f"that ran again: {again}"
    )
    counts = f"{len(checked.proven)} proven, {len(checked.again)} certified again, {len(checked.solver)} by a solver"
    reason = "" if checked.reason is None else f"; why it differs from other seeds: {checked.reason}"
    yield f"{CHECKED}: certificates that count: {counts}{reason}"
