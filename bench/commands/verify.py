"""`bench verify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands import options
from bench.core.errors import CheckError, UncheckedError

if TYPE_CHECKING:
    from bench.verify.report import Finding

EXIT_CODES = (
    "Exit code 0: every run is verified (a run whose attacks are weaker than --attack is, and the report says so); "
    "1: a check failed; 2: a mistake in the command; 3: predictions or witnesses of a run could not be checked."
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
    from bench.core.verification import write_verification
    from bench.verify.report import findings_table
    from bench.verify.run import verify
    from bench.verify.summary import summarize

    folders = find_records(args.runs)
    settings = options.verification_settings(args)
    attack, sample, seed = settings.attack, settings.sample, settings.seed
    reports: dict[str, list[Finding]] = {}
    for folder in folders:
        reports[str(folder)] = verify(folder, settings).findings
        try:
            write_verification(folder, reports[str(folder)], attack=attack, sample=sample, seed=seed)
        except OSError as error:  # the folder may be read-only
            print(f"{folder}: the findings were not stored ({error.strerror})", file=sys.stderr)
    summaries = {run: summarize(report) for run, report in reports.items()}
    if args.json:
        options.print_json([
            {
                "run": run, "attack": attack, "sample": sample, "seed": seed, "outcome": summaries[run].status,
                "counts": summaries[run].counts, "findings": report,
            }
            for run, report in reports.items()
        ])  # fmt: skip
    else:
        parts = [f"{run}\n{findings_table(report)}\n{summaries[run].as_line()}" for run, report in reports.items()]
        print("\n\n".join(parts))
    failed, incomplete = ([run for run in reports if summaries[run].status == s] for s in ("failed", "incomplete"))
    if failed:
        raise CheckError(f"{len(failed)} of {len(reports)} runs failed, the first is {failed[0]}")
    if incomplete:
        first = f"the first is {incomplete[0]}: {', '.join(summaries[incomplete[0]].unchecked)}"
        raise UncheckedError(f"{len(incomplete)} of {len(reports)} runs could not be verified, {first}")
