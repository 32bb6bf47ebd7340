"""Checks the requirements of a board: its suite's rules, a strong enough attack, and a good enough verdict."""

from collections.abc import Sequence

from bench.core.config import CORRUPTIONS, Suite
from bench.core.errors import UserError
from bench.core.records import Record
from leaderboard.published_results import About

LAST_STAGE = "square"  # the last attack of a bracket that all undecided examples go through


def check_board(record: Record, suite: Suite) -> None:
    """Check that a run follows the suite, has an attack that the board accepts, and has a good enough verdict."""
    if suite.norm == CORRUPTIONS:
        raise UserError(f"the board of {suite.name} takes reported accuracies only: bench leaderboard --add-reported")
    for what, value, wanted in (
        ("data set", record.dataset, suite.dataset),
        ("norm", record.threat.norm, suite.norm),
        ("eps", record.threat.eps, suite.eps),
        ("box", record.threat.box, True),
        ("eval_batch", record.config.get("eval_batch"), suite.eval_batch),
    ):
        if value != wanted:
            unit = " (of images in [0, 1])" if what == "eps" else ""
            raise UserError(f"the run has the {what} {value}{unit}; suite {suite.name} has {wanted}")
    bracket = record.bracket
    if bracket is not None and bracket.cut_by_time:
        raise UserError(
            f"the bracket was cut by its time limit of {bracket.effective_time_limit:g} s with {bracket.open} examples "
            "open, so its result depends on the machine; run it again without --time-limit, and with a smaller "
            "--budget if it takes too long"
        )
    if bracket is not None and bracket.budget is None:
        raise UserError("the bracket's budget was a limit of time, as in earlier versions; run it again")
    tried = 0 if bracket is None or LAST_STAGE not in bracket.stages else bracket.stages[LAST_STAGE].tried
    if not set(record.attacks) & set(suite.board_attacks) and (bracket is None or tried < bracket.open):
        raise UserError(f"none of the attacks of the board ran; run with --attacks {', '.join(suite.board_attacks)}")
    if record.sanity.verdict not in ("no-warnings", "suspect"):
        reasons = "; ".join(record.sanity.reasons) or "no reason given"
        raise UserError(f"the sanity verdict is {record.sanity.verdict}, so its accuracy is not a bound: {reasons}")


def check_additional_data(records: Sequence[Record], about: About) -> None:
    """Check that an entry says that its training used additional data, if the settings of the training name a file."""
    for record in records:
        training = record.config.get("training")
        file = training.get("extra") if isinstance(training, dict) else None
        if file and not about.extra_data:
            raise UserError(
                f"seed {record.seed} was trained with additional data, {str(file)[:80]!a}; give --extra-data (in "
                "about.toml: extra_data = true)"
            )
