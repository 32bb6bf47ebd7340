"""`bench check`: the regression gate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from bench.core.errors import CheckError, UserError
from bench.core.files import write_atomically


def add(commands: Any) -> None:
    sub = commands.add_parser("check", help="regression gate for CI: compare new runs with a baseline")
    sub.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="new runs, or folders of them (default: runs)")
    sub.add_argument("--baseline", type=Path, required=True, metavar="DIR", help="folder with the runs to compare with")
    help_text = "the runs to take of a defense that has runs with several settings: the first digits of config hashes"
    sub.add_argument("--config", type=lambda text: text.split(","), default=[], metavar="HASH,...", help=help_text)
    help_text = "compare only this recipe: a defense, or the recipe's line in the table; repeatable (default: all)"
    sub.add_argument("--only", action="append", default=[], metavar="RECIPE", help=help_text)
    sub.add_argument("--alpha", type=float, metavar="P", help="probability of a false alarm (default: 0.01)")
    sub.add_argument("--junit", type=Path, metavar="FILE", help="also write the findings as JUnit XML")
    sub.add_argument("--update", metavar="REASON", help="make the new runs the baseline, for this reason")
    sub.set_defaults(act=act_check)


def act_check(args: argparse.Namespace) -> None:
    from leaderboard.gate_baseline import update_baseline
    from leaderboard.gate_report import gate_annotations, gate_junit, gate_table
    from leaderboard.regression_gate import ALPHA, check_against_baseline

    runs = args.runs or [Path("runs")]
    if args.update is not None:
        if args.alpha is not None or args.junit is not None or args.only:
            raise UserError(
                "--alpha, --junit and --only are for a comparison, which --update does not make; leave them out"
            )
        print(update_baseline(args.baseline, runs, args.update, args.config))
        return
    alpha = ALPHA if args.alpha is None else args.alpha
    report = check_against_baseline(args.baseline, runs, alpha, args.config, args.only)
    print(gate_table(report))
    if args.junit is not None:
        write_atomically(args.junit, gate_junit(report).encode())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(gate_annotations(report)))
    if report.failed:
        raise CheckError("the new runs differ from the baseline; if that is intended, accept them with --update REASON")
