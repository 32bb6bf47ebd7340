"""Formats the result of checking a run's evidence as text."""

from collections.abc import Iterator

from leaderboard.recheck.contests import CONTESTED
from leaderboard.recheck.run import BROKEN, CERTIFIED, Example, Report
from leaderboard.render import percent, render, wrapped

MEANING = {
    "proven": "certified: proven",
    "proof fails": "certified: THE PROOF FAILS",
    "trusted solver": "certified: by a solver that gives no proof",
    "no proof": "certified: no proof to check",
    "witness valid": "broken: valid witness",
    "witness invalid": "broken: THE WITNESS IS INVALID",
    "no witness": "broken: NO WITNESS",
    "witness not checkable": "broken: the witness cannot be checked",
    "contest valid": "broken in a contest: valid witness",
    "contest invalid": "broken in a contest: THE WITNESS IS INVALID",
    "contest not checkable": "broken in a contest: the witness cannot be checked",
}
NAMED = 20  # maximum number of failed examples that are listed


def report_text(report: Report, *, every: bool, width: int | None = None) -> str:
    """Show a table of outcomes, the failed examples and the totals. every: a line for each example."""
    n = len(report.examples)
    counts = {"misclassified without an attack": sum(example.error for example in report.examples)}
    counts |= {MEANING[outcome]: report.count(outcome) for outcome in (*CERTIFIED, *BROKEN, *CONTESTED)}
    neither = [each for each in report.examples if not (each.error or each.proof or each.witness or each.contest)]
    counts["neither certified nor broken"] = len(neither)
    rows = [[name, f"{count:,}", percent(count / n)] for name, count in counts.items() if count]
    parts = [report.run, render(["outcome", "examples", "%"], rows, "markdown", "lrr", width)]
    if report.unchecked:
        parts.append(wrapped(f"not checked: {report.unchecked}{_because(report.missing)}", width))
    elif report.missing:
        parts.append(wrapped(report.missing, width))
    if report.unused:
        parts.append(wrapped(f"weights that are no part of the described network: {', '.join(report.unused)}", width))
    named = report.examples if every else report.failures[:NAMED]
    if named:
        parts.append("\n".join(_line(example) for example in named))
    if not every and len(report.failures) > NAMED:
        parts.append(f"and {len(report.failures) - NAMED} more that failed")
    proofs = report.count("proven") + report.count("proof fails")
    shown = f"robust accuracy on these examples is at least {percent(report.proven_acc)} %"
    if report.count("witness valid") or report.count("contest valid"):
        shown += f" and at most {percent(1 - report.broken_acc)} %"
    same = report.certified_acc == report.proven_acc
    claimed = "" if same else f"; the record says {percent(report.certified_acc)} %"
    size = f"; {report.proof_bytes / proofs:,.0f} bytes a proof" if proofs else ""
    return "\n\n".join([*parts, wrapped(f"checked: {shown}{claimed}{size}", width)])


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _line(example: Example) -> str:
    return f"  example {example.index}: {'; '.join(_outcomes(example)) or 'neither certified nor broken'}"


def _outcomes(example: Example) -> Iterator[str]:
    if example.error:
        yield "misclassified without an attack"
    for outcome, reason in (
        (example.proof, example.proof_reason),
        (example.witness, example.witness_reason),
        (example.contest, example.contest_reason),
    ):
        if outcome:
            yield outcome + (f" ({reason})" if reason else "")
