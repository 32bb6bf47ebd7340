"""`bench table`: records side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    sub = commands.add_parser("table", help="finished runs side by side")
    sub.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of them (default: runs)"
    )
    sub.add_argument("--format", choices=["markdown", "csv", "latex", "json"], default="markdown")
    sub.set_defaults(act=act_table)


def act_table(args: argparse.Namespace) -> None:
    from bench.core.records import find_records, read_run
    from leaderboard.tables import comparison

    folders = find_records(args.runs or [Path("runs")])
    print(comparison([read_run(folder) for folder in folders], args.format))
