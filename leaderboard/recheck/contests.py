"""Checks the witnesses of contests: examples that were broken after a run was published."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.core.errors import CheckError, UserError
from bench.core.files import read_arrays, sha256
from leaderboard.published_results import CONTESTS, Contest, read_contests
from leaderboard.recheck.layers import Vector

CONTESTED = ("contest valid", "contest invalid", "contest not checkable")

Problem = Callable[[int, Vector], str]  # (table row, point (C,H,W)) -> why it is no adversarial example, or ""


def broken_in_contests(
    run: Path, index: npt.NDArray[np.int64], problem: Problem | None, missing: str
) -> dict[int, tuple[str, str]]:
    """Table row -> (outcome, one of CONTESTED; reason) for each example that a contest of the run lists as broken.

    index (N,): the test examples of the table. problem: None if no network can be computed, because of `missing`.
    CheckError if a file of a contest is malformed, or not the one that the contest names.
    """
    row_of = {example: row for row, example in enumerate(index.tolist())}
    outcomes: dict[int, tuple[str, str]] = {}
    try:
        for contest in read_contests(run):
            if unknown := set(contest.broken) - row_of.keys():
                raise CheckError(f"a contest of {run} breaks example {min(unknown)}, which the run does not have")
            for example, outcome in _outcomes(run, contest, row_of, problem, missing).items():
                if outcomes.get(row_of[example], ("",))[0] != "contest valid":
                    outcomes[row_of[example]] = outcome
    except UserError as error:
        raise CheckError(str(error)) from error
    return outcomes


def _outcomes(
    run: Path, contest: Contest, row_of: dict[int, int], problem: Problem | None, missing: str
) -> dict[int, tuple[str, str]]:
    """Test example -> outcome, for those that the contest lists. Of several witnesses of one example, one must hold."""
    file = contest.witnesses
    path = None if file.path is None else run / CONTESTS / Path(file.path).name
    if problem is None or path is None or not path.exists():
        where = "" if file.url is None else f"; they are published at {file.url}"
        reason = missing if problem is None else f"the witnesses of the contest are not in {run / CONTESTS}{where}"
        return dict.fromkeys(contest.broken, ("contest not checkable", reason))
    if sha256(path) != file.sha256:
        raise CheckError(f"{path} has a different hash from the one in its contest")
    arrays = read_arrays(path)
    if not {"index", "x_adv"} <= arrays.keys() or len(arrays["index"]) != len(arrays["x_adv"]):
        raise CheckError(f"{path} does not hold 'index' and 'x_adv' of one length")
    outcomes = dict.fromkeys(contest.broken, ("contest invalid", f"{path.name} has no witness of it"))
    for example, point in zip(arrays["index"].tolist(), arrays["x_adv"].astype(np.float64), strict=True):
        if example in outcomes and outcomes[example][0] != "contest valid":
            why = problem(row_of[example], point)
            outcomes[example] = ("contest invalid", why) if why else ("contest valid", "")
    return outcomes
