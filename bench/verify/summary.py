"""Summarizes the findings of a verification: verified, failed or incomplete."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.verify.report import Finding, Outcome
from bench.verify.witnesses import WITNESS_CHECKS

Status = Literal["verified", "failed", "incomplete"]
ESSENTIAL = ("predictions", *WITNESS_CHECKS)  # without these, the accuracies have not been checked at all


@dataclass(frozen=True)
class Summary:
    """status: `failed` if a check failed; `incomplete` if predictions or witnesses could not be checked.

    counts: the number of findings by outcome. unchecked: the essential checks that could not be made. advice: how they
    can be made, or "". lowered: the accuracy under attack of the record, and without the examples that fell now.
    """

    status: Status
    counts: dict[Outcome, int]
    unchecked: tuple[str, ...]
    advice: str = ""
    lowered: tuple[float, float] | None = None

    @property
    def obstacle(self) -> str:
        """What an incomplete verification needs, or what it could not check."""
        return self.advice or f"not checked: {', '.join(self.unchecked)}"

    def as_line(self) -> str:
        counts = ", ".join(f"{n} {_plural(outcome, n)}" for outcome, n in self.counts.items())
        reason = f"; {self.obstacle}" if self.status == "incomplete" else ""
        if self.lowered is not None:
            before, after = (f"{100 * share:.1f} %" for share in self.lowered)
            reason += f"; accuracy under attack is at most {after}, the record says {before}"
        return f"{self.status}: {counts}{reason}"


def _plural(outcome: Outcome, count: int) -> str:
    return "warnings" if outcome == "warning" and count != 1 else outcome


def summarize(report: Sequence[Finding], *, advice: str = "", lowered: tuple[float, float] | None = None) -> Summary:
    """The status of a run, from the findings of all checks. advice, lowered: see Summary."""
    counts = Counter(finding.outcome for finding in report)
    order: tuple[Outcome, ...] = ("passed", "failed", "weaker", "warning", "not checkable")
    missing = tuple(each.name for each in report if each.outcome == "not checkable" and each.name in ESSENTIAL)
    status: Status = "failed" if counts["failed"] else "incomplete" if missing else "verified"
    return Summary(status, {outcome: counts[outcome] for outcome in order if counts[outcome]}, missing, advice, lowered)
