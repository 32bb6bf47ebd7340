"""Checks who may add seeds to an entry, and which seeds need a reason.

Descriptions and reasons are untrusted, and so is the author of a pull request unless the workflow passes it. What is
published is trusted.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.core.errors import CheckError, UserError
from leaderboard.published_results import ABOUT, About, EvaluatedRun, read_about
from leaderboard.significance import prediction

ACCOUNT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})")  # of GitHub
LEVEL = 0.99  # of the prediction interval in which a new seed lies, unless it has a reason
FEWEST = 3  # number of other seeds that such an interval needs


def check_maintainers(home: Path, about: About | None, author: str | None) -> None:
    """UserError if a maintainer is not an account name; CheckError if the author of a pull request is not one of them.

    home: the entry's folder. about: the description of a new entry. author: None for a submission that is not a pull
    request.
    """
    known = read_about(home / ABOUT) if (home / ABOUT).exists() else about
    names = () if known is None else known.maintainers
    for name in names:
        if not ACCOUNT.fullmatch(name):
            raise UserError(f"maintainer {name!a} is not the name of an account")
    if author is not None and author not in names:
        owners = ", ".join(names) or "nobody; an entry names its maintainers with --maintainer"
        raise CheckError(f"refused: {author} may not add seeds to {home.name}; its maintainers are {owners}")


def check_seeds_alike(
    new: Mapping[int, tuple[float, float]], published: Sequence[EvaluatedRun], n: int, reason: str | None
) -> None:
    """CheckError if a new seed is far from the other seeds of its entry and no reason is given.

    new: seed -> (clean accuracy, accuracy under attack), on n examples. A seed is compared with the published ones, or
    with the other new ones if it is published with its entry: it must lie in their prediction interval.
    """
    known = {run.record.seed: (float(run.clean.mean()), float(run.robust.mean())) for run in published}
    for seed, accuracies in new.items():
        others = known or {other: each for other, each in new.items() if other != seed}
        if len(others) < FEWEST or reason:
            continue
        for at, what in enumerate(("clean", "attacked")):
            low, high = prediction(np.array([each[at] for each in others.values()]), 1, LEVEL, 1 / n)
            if not low <= accuracies[at] <= high:
                raise CheckError(
                    f"refused: seed {seed} has {accuracies[at]:.1%} {what}, the others predict [{float(low):.1%}, "
                    f"{float(high):.1%}]; say why with --reason"
                )
