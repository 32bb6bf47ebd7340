"""`bench show RUN`: everything that a record holds, as text."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.counts import counted
from bench.core.record_verdict import SERIOUS
from bench.core.records import BracketStage, Record, StageResult
from leaderboard.published_report import after_contests, published_lines
from leaderboard.published_results import EvaluatedRun
from leaderboard.render import render, threat_name, wrapped
from leaderboard.single_run_tables import accuracies_table, evidence_lines, verdict_lines

READABLE = 120  # columns of the table of checks in a pipe: its evidence is prose


@dataclass(frozen=True)
class Setting:
    """A setting of a run and the value that the suite's rules give it; both as JSON values."""

    name: str
    value: Any
    suites: Any


def record_report(
    record: Record,
    folder: Path,
    settings: Iterable[Setting],
    suite: str | None,
    width: int | None = None,
    *,
    note: str = "",
    every: bool = False,
    published: EvaluatedRun | None = None,
) -> str:
    """Show all that a record holds.

    settings: those that differ from the suite's; all of them if there is no suite. note: a line about them. every: also
    list checks without an alarm. published: the run as a board counts it, with contests; None if it is not published.
    """
    parameters = "" if record.parameters is None else f" ({record.parameters:,} parameters)"
    where = f"{record.defense} on {record.dataset}, {record.model}{parameters}, {threat_name(record.threat)}"
    title = f"{where}, seed {record.seed}, {record.n_examples:,} test examples"
    parts = [wrapped(title, width), f"run folder: {folder}", *_settings(record, list(settings), suite, width)]
    parts += [wrapped(note, width)] if note else []
    parts.append(accuracies_table(record, width, after_contests(published)))
    parts += ["\n".join(wrapped(line, width) for line in published_lines(published))] if published else []
    parts += [*_stages(record, width), *evidence_lines(record, width)]
    parts += [_sanity(record, width, every=every), *_warnings(record, width), _provenance(record, width)]
    if command := record.provenance.get("command"):
        parts.append(f"Command:\n\n    {command}")
    return "\n\n".join(parts)


def _settings(record: Record, settings: list[Setting], suite: str | None, width: int | None) -> Iterator[str]:
    if suite is None:
        of_its_own = f"the suite {record.suite} is not known here; --suites DIR adds it"
        yield f"Settings ({'no suite has this data set' if record.suite is None else of_its_own}):"
        yield render(["setting", "value"], [[s.name, _text(s.value)] for s in settings], "markdown", "ll", width)
    elif settings:
        yield f"Settings that differ from those of the suite {suite}:"
        rows = [[s.name, _text(s.value), _text(s.suites)] for s in settings]
        yield render(["setting", "this run", "suite"], rows, "markdown", "lll", width)
    else:
        yield f"All settings are those of the suite {suite}."


def _text(value: Any) -> str:
    """A JSON value as `--set` writes it."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _stages(record: Record, width: int | None) -> Iterator[str]:
    """The stages of staged attacks and of the bracket. Columns of a bracket that no stage has are left out."""
    headers = ["stage", "tried", "certified", "broken", "forwards", "backwards", "seconds", "sub-problems", "proofs"]
    groups: dict[str, Mapping[str, StageResult | BracketStage]] = {
        f"Stages of {spec}:": attack.stages for spec, attack in record.attacks.items() if attack.stages
    }
    if record.bracket is not None:
        groups["Stages of the bracket:"] = record.bracket.stages
    for title, stages in groups.items():
        yield title
        rows = [[name, *_stage(stage)] for name, stage in stages.items()]
        shown = [k for k in range(len(headers)) if any(row[k] for row in rows)]
        rows = [[row[k] for k in shown] for row in rows]
        yield render([headers[k] for k in shown], rows, "markdown", "l" + "r" * (len(shown) - 1), width)


def _stage(stage: StageResult | BracketStage) -> list[str]:
    cost = [f"{stage.forwards:,}", f"{stage.backwards:,}", f"{stage.seconds:.1f}"]
    if isinstance(stage, StageResult):
        return [str(stage.attacked), "", str(stage.broken), *cost, "", ""]
    optional = ["" if value is None else f"{value:,}" for value in (stage.nodes, stage.proofs)]
    return [str(stage.tried), str(stage.certified), str(stage.broken), *cost, *optional]


def _sanity(record: Record, width: int | None, *, every: bool) -> str:
    """The verdict with its checks. every: also those that passed or were skipped, which are only counted else."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2g}"

    rows = [
        [check.name, check.outcome, number(check.value), number(check.threshold), check.evidence]
        for check in record.sanity.checks
        if every or check.outcome in SERIOUS
    ]
    outcomes = [check.outcome for check in record.sanity.checks]
    quiet = f"{outcomes.count('passed')} checks passed, {outcomes.count('skipped')} skipped (--all lists them)"
    audited = (
        [f"{record.audited} certified examples were attacked as a check of the certifiers."] if record.audited else []
    )
    header = ["check", "outcome", "value", "limit", "evidence"]
    table = [render(header, rows, "markdown", "llrrl", width or READABLE)] if rows else []
    counts = [quiet] if outcomes and not every else []
    lines = [wrapped(line, width) for line in (*counts, *audited)]
    return "\n\n".join([wrapped(verdict_lines(record), width), *table, *lines])


def _warnings(record: Record, width: int | None) -> Iterator[str]:
    sources = {**record.attacks, **record.certifiers, "bracket": record.bracket, "training": record.training}
    lines = [f"  {name}: {text}" for name, source in sources.items() if source is not None for text in source.warnings]
    if lines:
        yield wrapped("\n".join(["Warnings:", *lines]), width)


def _provenance(record: Record, width: int | None) -> str:
    facts = {key: value for key, value in record.provenance.items() if key != "command"}
    lines = [f"  config: {record.config_hash}"]
    for key, value in facts.items():
        if isinstance(value, dict) and key != "versions":
            value = counted(len(value), "file")  # their hashes are in the record
        text = ", ".join(f"{k} {v}" for k, v in value.items() if v) if isinstance(value, dict) else value
        lines.append(f"  {key}: {text}")
    for name, file in record.artifacts.items():
        lines.append(f"  {name}: {file.url or file.path or 'not published'}, {file.bytes:,} bytes, {file.sha256[:12]}")
    return wrapped("\n".join(["Provenance:", *lines]), width)
