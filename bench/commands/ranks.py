"""`bench ranks TABLE...`: tested ranks for the scores of any board. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ABOUT = "rank the entries of any table of scores: examples x entries or seeds x entries, as CSV or JSON lines"
FORMS = """\
scores.csv, wide: the first column names the example, each further column is an entry
  example,model-a,model-b
  17,1,0

or long: the columns entry, score, and example or seed (or both)
  entry,seed,score
  model-a,0,0.93

JSON lines hold the same as objects, or are instance records of Every Eval Ever. Scores are numbers, true or false;
an empty cell is a score that is not known. With seeds, the entries are recipes, compared over their seeds."""


def add(commands: Any) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    sub = commands.add_parser("ranks", help=ABOUT, epilog=FORMS, formatter_class=formatter)
    sub.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="a .csv or .jsonl; several are one table")
    help_text = "what the rows of a wide table are (default: seeds if its first column is called seed, else examples)"
    sub.add_argument("--rows", choices=["examples", "seeds"], help=help_text)
    sub.add_argument("--lower-is-better", action="store_true", help="the scores are errors, costs or losses")
    help_text = "default: a table that fits the terminal; markdown in a pipe or a file"
    sub.add_argument("--format", choices=["markdown", "csv", "latex", "json", "html"], help=help_text)
    sub.set_defaults(act=act_ranks)


def act_ranks(args: argparse.Namespace) -> None:
    from leaderboard.rank_report import rank_report
    from leaderboard.render import terminal_width
    from leaderboard.score_tables import read_scores
    from leaderboard.table_ranks import rank_table

    ranked = rank_table(read_scores(args.tables, args.rows), lower_is_better=args.lower_is_better)
    print(rank_report(ranked, args.format or "markdown", terminal_width() if args.format is None else None))
