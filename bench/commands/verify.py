"""`bench verify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands import options
from bench.core.errors import CheckError, UncheckedError, UserError

if TYPE_CHECKING:
    from bench.verify.inputs import Settings
    from bench.verify.report import Finding
    from bench.verify.summary import Summary

EXIT_CODES = (
    "Exit code 0: every run is verified (a run whose attacks are weaker than --attack is, and the report says so); "
    "1: a check failed; 2: a mistake in the command; 3: predictions or witnesses of a run could not be checked. The "
    "findings are stored in RUN/verification.json, and every command prints the verdict of the run with them: "
    "unreliable after a failed check, suspect if --attack is stronger than the run's attacks. Delete the file to undo "
    "this. Nothing is stored in a published entry (a folder below one with an about.toml)."
)


def add(commands: Any) -> None:
    about = "check the evidence of runs again: files, labels, witnesses, certificates"
    sub = commands.add_parser("verify", help=about, epilog=EXIT_CODES)
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    options.add_verification(sub, min_sample=0)
    sub.add_argument("--json", action="store_true", help="print findings as JSON")
    options.add_plugin(sub)
    sub.set_defaults(act=act_verify)


def act_verify(args: argparse.Namespace) -> None:
    from bench.core.record_files import find_records
    from bench.verify.report import findings_table
    from bench.verify.run import verify
    from bench.verify.summary import summarize

    folders = find_records(args.runs, strict=True)
    settings = options.verification_settings(args)
    attack, sample, seed = settings.attack, settings.sample, settings.seed
    reports: dict[str, list[Finding]] = {}
    summaries: dict[str, Summary] = {}
    notes: dict[str, str] = {}
    for folder in folders:
        run, result = str(folder), verify(folder, settings)
        reports[run] = result.findings
        summaries[run] = summarize(result.findings, advice=result.advice, lowered=result.lowered)
        notes[run] = _store(folder, result.findings, settings)
    if args.json:
        options.print_json([
            {
                "run": run, "attack": attack, "sample": sample, "seed": seed, "outcome": summaries[run].status,
                "counts": summaries[run].counts, "lowered": summaries[run].lowered, "findings": report,
            }
            for run, report in reports.items()
        ])  # fmt: skip
    else:
        parts = [
            f"{run}\n{findings_table(report)}\n{notes[run]}{summaries[run].as_line()}"
            for run, report in reports.items()
        ]
        print("\n\n".join(parts))
    failed, incomplete = ([run for run in reports if summaries[run].status == s] for s in ("failed", "incomplete"))
    if failed:
        raise CheckError(f"{len(failed)} of {len(reports)} runs failed, the first is {failed[0]}")
    if incomplete:
        first = f"the first is {incomplete[0]}: {summaries[incomplete[0]].obstacle}"
        raise UncheckedError(f"{len(incomplete)} of {len(reports)} runs could not be verified, {first}")


def _store(folder: Path, findings: list[Finding], settings: Settings) -> str:
    """Store the findings beside the record, except in a published entry; a line if they change the verdict, or ""."""
    from bench.core.record_files import read_record
    from bench.core.verification import VERIFICATION, verified, write_verification
    from leaderboard.published_results import ABOUT
    from leaderboard.render import verdict_text

    if (folder.resolve().parent / ABOUT).exists():
        return ""
    try:
        write_verification(folder, findings, attack=settings.attack, sample=settings.sample, seed=settings.seed)
    except OSError as error:  # the folder may be read-only
        print(f"{folder}: the findings were not stored ({error.strerror})", file=sys.stderr)
        return ""
    try:
        record = read_record(folder)
    except UserError:  # which is a finding already
        return ""
    before, now = record.sanity.verdict, verified(record, folder).sanity.verdict
    if before == now:
        return ""
    return f"verdict: {verdict_text(now)}, by {folder / VERIFICATION} (the record's own: {verdict_text(before)})\n"
