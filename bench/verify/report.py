"""A report of findings: how it is put together where a check may fail, and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tabulate import tabulate

from bench.core import registry
from bench.core.errors import CheckError, UserError
from bench.verify.checks import Finding, Outcome

T = TypeVar("T")


def as_table(report: Sequence[Finding]) -> str:
    """One line for each finding."""
    return tabulate(
        [(each.outcome, each.name, each.evidence) for each in report], tablefmt="plain", disable_numparse=True
    )


def need(thing: T | None, what: str) -> T:
    if thing is None:
        raise UserError(f"without the {what}")
    return thing


def load(report: list[Finding], what: str, read: Callable[[], T], otherwise: Outcome = "not checkable") -> T | None:
    """What `read` returns; None, and a finding, where it fails."""
    try:
        return read()
    except UserError as error:
        report.append(Finding(what, otherwise, str(error)))
    except Exception as error:  # a file, a plugin and a model may be anybody's
        report.append(Finding(what, "failed", _line(error)))
    return None


def check(report: list[Finding], names: Sequence[str], find: Callable[[], list[Finding]]) -> None:
    """The findings of a check; where it cannot be made, one for each of its names that says so."""
    try:
        report += find()
    except UserError as error:
        report += [Finding(name, "not checkable", str(error)) for name in names]
    except Exception as error:  # a file, a plugin and a model may be anybody's
        report += [Finding(name, "failed", _line(error)) for name in names]


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, CheckError) else registry.one_line(error)
