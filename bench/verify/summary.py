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

    counts: the number of findings by outcome. unchecked: the essential checks that could not be made.
    """

    status: Status
    counts: dict[Outcome, int]
    unchecked: tuple[str, ...]

    def as_line(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items())
        reason = f"; not checked: {', '.join(self.unchecked)}" if self.status == "incomplete" else ""
        return f"{self.status}: {counts}{reason}"


def summarize(report: Sequence[Finding]) -> Summary:
    """The status of a run, from the findings of all checks."""
    counts = Counter(finding.outcome for finding in report)
    order: tuple[Outcome, ...] = ("passed", "failed", "weaker", "warning", "not checkable")
    missing = tuple(each.name for each in report if each.outcome == "not checkable" and each.name in ESSENTIAL)
    status: Status = "failed" if counts["failed"] else "incomplete" if missing else "verified"
    return Summary(status, {outcome: counts[outcome] for outcome in order if counts[outcome]}, missing)
