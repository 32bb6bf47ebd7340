"""`bench table`, `bench compare`, `bench leaderboard` and `bench check`: finished runs side by side."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.arguments import task_of
from bench.commands.options import add_suites_option, print_json
from bench.core.config import add_suites, get_suite
from bench.core.errors import CheckError, UserError
from bench.core.files import write_atomically
from bench.core.folders import changed_in_one_step, recovered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.core.records import Record
    from leaderboard.build_board import RankedBoard
    from leaderboard.page import SuiteDetails
    from leaderboard.render import Format

TASKS = {  # of `bench leaderboard` besides its table, and the options that each uses
    "html": ("suite", "witnesses", "data_dir", "repository"),
    "speedrun": ("suite", "format"),
    "export": (),
    "add_reported": ("reported_as",),
}
SUFFIXES: dict[Format, str] = {"markdown": "md", "csv": "csv", "latex": "tex", "json": "json"}
FORMAT = "default: a table that fits the terminal; markdown in a pipe or a file"


def add(commands: Any) -> None:
    sub = commands.add_parser("table", help="print a table of finished runs")
    sub.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or their parents (default: runs)")
    sub.add_argument("--format", choices=[*SUFFIXES], help=FORMAT)
    sub.set_defaults(act=act_table)

    sub = commands.add_parser("compare", help="test whether one run, or recipe, is better than another")
    for side in ("a", "b"):
        sub.add_argument(side, type=Path, metavar=side.upper(), help="a run folder, or a folder of seeds")
    sub.add_argument("--json", action="store_true", help="print JSON, with every example on which they differ")
    sub.set_defaults(act=act_compare)

    sub = commands.add_parser("leaderboard", help="rank the published results; --html writes a page")
    option = sub.add_argument
    option("--suite", metavar="NAME", help="a suite, or FILE.toml (default: all suites with entries)")
    add_suites_option(sub)
    option("--html", type=Path, metavar="DIR", help="write a page that works offline, and its data")
    help_text = "with --html: show the published adversarial examples whose .npz are in this folder, for example runs"
    option("--witnesses", type=Path, metavar="DIR", help=help_text)
    help_text = "with --html: folder with NAME.npz, for images (default: BENCH_DATA, else a download)"
    option("--data-dir", type=Path, metavar="DIR", help=help_text)
    option("--repository", metavar="URL", help="with --html: where the results are kept, for the foot of the page")
    option("--format", choices=[*SUFFIXES], help=FORMAT)
    option("--results", type=Path, metavar="DIR", help="published results (default: those of this package)")
    option("--speedrun", action="store_true", help="which entries reach the suite's targets with the fewest passes")
    option("--export", metavar="SUITE/ENTRY", help="print this entry as a model_info JSON of RobustBench")
    help_text = "add a model_info JSON of RobustBench as --reported-as, or a folder of them, each to its suite"
    option("--add-reported", type=Path, metavar="PATH", help=help_text)
    option("--reported-as", metavar="SUITE/ENTRY", help="the entry to add; shown as reported, not verified")
    sub.set_defaults(act=act_leaderboard)

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


def act_table(args: argparse.Namespace) -> None:
    from bench.core.record_files import find_records, read_run
    from bench.core.verification import verified
    from leaderboard.runs_table import runs_table

    folders = find_records(args.runs or [Path("runs")])
    records = [verified(read_run(folder), folder) for folder in folders]
    _check_distinct(records, folders)
    print(runs_table(records, args.format or "markdown", _width(args.format)))


def _check_distinct(records: Sequence[Record], folders: Sequence[Path]) -> None:
    """UserError if two folders hold the same seed of a recipe: a mean over them would count it twice."""
    seen: dict[tuple[str, str, int], Path] = {}
    for record, folder in zip(records, folders, strict=True):
        key = (record.defense, record.config_hash, record.seed)
        if (other := seen.setdefault(key, folder)) is not folder:
            raise UserError(f"{other} and {folder} are both seed {record.seed} of {record.defense}; give one of them")


def _width(form: Format | None) -> int | None:
    """The columns of the terminal, unless a format was asked for."""
    from leaderboard.render import terminal_width

    return terminal_width() if form is None else None


def act_compare(args: argparse.Namespace) -> None:
    from leaderboard.pairwise_comparison import caveats, compare, comparison_table, read_side

    a, b = read_side(args.a), read_side(args.b)
    differences = compare(a, b)
    if args.json:
        print_json(differences)
        for caveat in caveats(a, b, [each.metric for each in differences]):
            print(f"note: {caveat}", file=sys.stderr)
    else:
        print(comparison_table(a, b, differences, _width(None)))


def act_leaderboard(args: argparse.Namespace) -> None:
    from leaderboard.board_tables import render_boards
    from leaderboard.build_board import ranked_board
    from leaderboard.page import write_page
    from leaderboard.published_results import published_suites, read_entry, results_folder
    from leaderboard.robustbench_exchange import export_model_info, import_model_info

    task_of(args, TASKS, otherwise=("suite", "format"))
    if args.add_reported is not None and args.add_reported.is_dir() == (args.reported_as is not None):
        raise UserError("--add-reported takes a file with --reported-as SUITE/ENTRY, or a folder without it")
    results = args.results or results_folder()
    if args.suites is not None:
        add_suites(args.suites)
    if args.suite is not None and args.suite.endswith(".toml"):
        args.suite = get_suite(args.suite).name
    if args.export is not None:
        print(json.dumps(export_model_info(read_entry(*_place(results, args.export))), indent=2))
        return
    if args.add_reported is not None and args.reported_as is None:
        _add_folder(args.add_reported, results)
        return
    if args.add_reported is not None:
        home, suite = _place(results, args.reported_as)
        print(import_model_info(args.add_reported, results, suite, home.name, get_suite(suite).norm))
        return
    if args.repository is not None and not args.repository.startswith(("https://", "http://")):
        raise UserError(f"--repository '{args.repository}' is not an address; write https://HOST/...")
    suites = published_suites(results)
    if not suites:
        raise UserError(f"{results} has no entries; add one with `bench submit`, or give another --results")
    if args.suite not in (None, *suites):
        raise UserError(f"suite '{args.suite}' has no entries in {results}; suites with entries: {', '.join(suites)}")
    ranked = [ranked_board(results, name) for name in ([args.suite] if args.suite else suites)]
    boards = [each.board for each in ranked]
    for problem in (problem for board in boards for problem in board.left_out):
        print(f"warning: {problem}", file=sys.stderr)
    if args.speedrun:
        from leaderboard.speedrun import render_speedrun

        print(render_speedrun(boards, args.format or "markdown", _width(args.format)))
        return
    if args.html is None:
        print(render_boards(boards, args.format or "markdown", _width(args.format)))
        return
    details = [_detail(each, args) for each in ranked]
    _check_page_folder(args.html)
    with changed_in_one_step(args.html) as part:
        page = write_page(boards, part, details, args.repository)
        for form, suffix in SUFFIXES.items():
            (part / f"boards.{suffix}").write_text(f"{render_boards(boards, form)}\n", encoding="utf-8")
    print(args.html / page.name)


def _check_page_folder(home: Path) -> None:
    """UserError if the folder holds something else than an earlier page; the new one replaces files of its names."""
    visible = [path.name for path in recovered(home).iterdir() if path.name[0] != "."] if home.is_dir() else []
    if visible and f"boards.{SUFFIXES['json']}" not in visible:
        raise UserError(f"{home} has other files ({min(visible)}); give a new or empty folder to --html")


def _detail(ranked: RankedBoard, args: argparse.Namespace) -> SuiteDetails:
    """The data for the page's comparisons, with images of the entries whose adversarial examples are found."""
    from leaderboard.board_comparisons import comparisons
    from leaderboard.page import SuiteDetails
    from leaderboard.witness_images import Published, draw_images

    found = comparisons(ranked.board.suite, ranked.entries, ranked.ranks, ranked.order)
    measured = [entry for entry in ranked.entries if entry.runs]
    published = Published.find(args.witnesses, measured)
    if not published.files:
        return SuiteDetails(comparisons=found)
    try:
        x_test = _evaluated_images(measured[0].runs[0].record, args.data_dir)
    except UserError as error:
        if args.witnesses is not None:
            raise
        print(f"warning: {ranked.board.suite} has no images: {error}", file=sys.stderr)
        return SuiteDetails(comparisons=found)
    images, files = draw_images(ranked.board.suite, measured, published, x_test)
    return SuiteDetails(comparisons=found, images=images, files=files)


def _evaluated_images(record: Record, data_dir: Path | None) -> Any:
    """The test images (N,H,W,C) of a record; UserError if they are missing, or differ from those of the evaluation."""
    from bench.datasets.load import load_arrays

    arrays = load_arrays(record.dataset, data_dir)
    if arrays.hash != record.provenance.get("data_hash"):
        raise UserError(f"{record.dataset} is not the data that the suite was evaluated on; name another --data-dir")
    return arrays.x_test


def _add_folder(folder: Path, results: Path) -> None:
    """Add each file to its suite; print a line for each refused file, and then raise CheckError."""
    from leaderboard.reported_folder import import_folder

    done = import_folder(folder, results)
    by_suite = Counter(home.parent.name for home in done.added)
    print("\n".join(f"{suite}: {n} added" for suite, n in sorted(by_suite.items())) or "none added")
    for refused in done.refused:
        print(refused, file=sys.stderr)
    if done.refused:
        raise CheckError(f"{len(done.refused)} of {len(done.refused) + len(done.added)} files were not added")


def _place(results: Path, text: str) -> tuple[Path, str]:
    """The folder of SUITE/ENTRY, and the suite."""
    from leaderboard.published_results import check_name

    suite, _, entry = text.partition("/")
    return results / check_name(suite, "suite") / check_name(entry, "entry"), suite


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
