"""`bench recheck RUN`: proofs and witnesses, checked without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.commands.options import add_plugin, add_quiet, print_json
from bench.core import registry
from bench.core.counts import counted
from bench.core.errors import CheckError, UncheckedError, UserError

EXIT_CODES = (
    "Exit code 0: every proof holds and every witness is valid, also those of contests; 1: one is not; 2: a mistake in "
    "the command; 3: nothing failed, but proofs or witnesses that a run has could not be checked, because files are "
    "not published or the run has no network.json. Certificates without a proof are listed, and are no failure."
)


def add(commands: Any) -> None:
    about = "check proofs of certified examples and witnesses of broken ones, with an independent checker"
    sub = commands.add_parser("recheck", help=about, epilog=EXIT_CODES)
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    help_text = "folder with NAME.npz (default: BENCH_DATA, else a download)"
    sub.add_argument("--data-dir", type=Path, metavar="DIR", help=help_text)
    sub.add_argument("--examples", action="store_true", help="print a line for each example, not only for failures")
    sub.add_argument("--json", action="store_true", help="print the outcome of each example as JSON")
    add_quiet(sub)
    add_plugin(sub)
    sub.set_defaults(act=act_recheck)


def act_recheck(args: argparse.Namespace) -> None:
    from msgspec import to_builtins

    from bench.core.progress import Progress
    from bench.core.record_files import find_records, read_record
    from bench.datasets.load import load_arrays
    from leaderboard.recheck.report import report_text
    from leaderboard.recheck.run import recheck
    from leaderboard.render import terminal_width

    for path in args.plugins:
        registry.import_file(path, what="plugin")
    trusted = {path.resolve() for path in args.plugins}
    reports = []
    for folder in find_records(args.runs):
        record = read_record(folder)
        code = Path(record.dataset.partition(":")[0])
        if code.suffix == ".py" and code.resolve() not in trusted:
            raise UserError(f"the data set '{record.dataset}' is code in a file; give --plugin {code} to run it")
        data = load_arrays(record.dataset, args.data_dir)
        count = 0 if record.proofs is None else record.proofs.count
        with Progress(f"recheck {'/'.join(folder.parts[-2:])}", count, "proof", show=count > 0) as progress:
            report = recheck(folder, data.x_test, data.y_test, data.hash, advance=progress.advance)
        reports.append(report)
        if not args.json:
            print(f"{report_text(report, every=args.examples, width=terminal_width())}\n")
    if args.json:
        print_json(
            [
                to_builtins(report) | {"failed": len(report.failures), "unchecked": report.unchecked}
                for report in reports
            ]
        )
    failed = [report for report in reports if report.failures]
    if failed:
        first = failed[0]
        raise CheckError(
            f"{counted(len(first.failures), 'example')} of {first.run} failed, the first is {first.failures[0].index}"
            + (f"; {len(failed)} of {len(reports)} runs failed" if len(reports) > 1 else "")
        )
    unchecked = [report for report in reports if report.unchecked]
    if unchecked:
        first = unchecked[0]
        why = f"; {first.missing}" if first.missing else ""
        raise UncheckedError(
            f"{len(unchecked)} of {len(reports)} runs could not be checked, the first is {first.run}: "
            f"{first.unchecked}{why}"
        )
