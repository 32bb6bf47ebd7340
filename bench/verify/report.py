"""Collects the findings of a verification, also from checks that raise, and shows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from bench.core import registry
from bench.core.columns import columns
from bench.core.errors import CheckError, UserError

T = TypeVar("T")
Outcome = Literal["passed", "failed", "weaker", "warning", "not checkable"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, with one line of evidence.

    weaker: the record states what its attacks found, but a stronger attack breaks many more examples. warning: nothing
    contradicts the record, but the evidence should be inspected. not checkable: something that the check needs is
    missing.
    """

    name: str
    outcome: Outcome
    evidence: str


def findings_table(report: Sequence[Finding]) -> str:
    """One row per finding."""
    return columns([(finding.outcome, finding.name, finding.evidence) for finding in report])


def finding_of(examples: list[int], name: str, problem: str, evidence: str) -> Finding:
    """The check failed if there are examples with the problem; else it passed, with the evidence."""
    if examples:
        return Finding(name, "failed", f"{len(examples)} {problem}, the first at test example {min(examples)}")
    return Finding(name, "passed", evidence)


def require(value: T | None, what: str) -> T:
    """The value; UserError if it could not be read."""
    if value is None:
        raise UserError(f"the {what} could not be read")
    return value


def read_or_report(
    report: list[Finding], what: str, read: Callable[[], T], otherwise: Outcome = "not checkable"
) -> T | None:
    """Return what `read` returns; if it fails, add a finding and return None."""
    try:
        return read()
    except Exception as error:  # the file, plugin or model may come from anywhere
        report.append(_finding_of_error(what, error, otherwise))
    return None


def add_findings(report: list[Finding], names: Sequence[str], check: Callable[[], list[Finding]]) -> None:
    """Add the findings of a check; if it raises, one finding for each of its names."""
    try:
        report += check()
    except Exception as error:  # the file, plugin or model may come from anywhere
        report += [_finding_of_error(name, error, "not checkable") for name in names]


def _finding_of_error(name: str, error: Exception, of_user_error: Outcome) -> Finding:
    text = str(error) if isinstance(error, CheckError | UserError) else registry.one_line(error)
    return Finding(name, of_user_error if isinstance(error, UserError) else "failed", text)
