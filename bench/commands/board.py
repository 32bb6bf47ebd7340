"""`bench table`, `bench compare` and `bench leaderboard`: finished runs side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.arguments import task_of
from bench.commands.options import add_suites_option, print_json
from bench.core.config import add_suites, get_suite
from bench.core.errors import CheckError, UserError
from bench.core.folders import changed_in_one_step, recovered

if TYPE_CHECKING:
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


def act_table(args: argparse.Namespace) -> None:
    from bench.core.record_files import check_distinct_seeds, find_records, read_run
    from bench.core.verification import verified
    from leaderboard.runs_table import runs_table

    folders = find_records(args.runs or [Path("runs")])
    records = [verified(read_run(folder), folder) for folder in folders]
    check_distinct_seeds(records, folders)
    print(runs_table(records, args.format or "markdown", _width(args.format)))


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
    from leaderboard.published_results import results_folder

    task_of(args, TASKS, otherwise=("suite", "format"))
    if args.add_reported is not None and args.add_reported.is_dir() == (args.reported_as is not None):
        raise UserError("--add-reported takes a file with --reported-as SUITE/ENTRY, or a folder without it")
    results = args.results or results_folder()
    if args.suites is not None:
        add_suites(args.suites)
    if args.suite is not None and args.suite.endswith(".toml"):
        args.suite = get_suite(args.suite).name
    if args.export is not None:
        _export(args.export, results)
    elif args.add_reported is not None and args.reported_as is not None:
        _add_file(args.add_reported, results, args.reported_as)
    elif args.add_reported is not None:
        _add_folder(args.add_reported, results)
    elif args.speedrun:
        _print_speedrun(args, results)
    elif args.html is not None:
        _write_page(args, results)
    else:
        _print_boards(args, results)


def _export(entry: str, results: Path) -> None:
    """Print an entry as a model_info of RobustBench."""
    from leaderboard.published_results import read_entry
    from leaderboard.robustbench_exchange import export_model_info

    print(json.dumps(export_model_info(read_entry(*_place(results, entry))), indent=2))


def _add_file(file: Path, results: Path, entry: str) -> None:
    """Add a model_info of RobustBench as a reported entry."""
    from leaderboard.robustbench_exchange import import_model_info

    home, suite = _place(results, entry)
    print(import_model_info(file, results, suite, home.name, get_suite(suite).norm))


def _ranked_boards(args: argparse.Namespace, results: Path) -> list[RankedBoard]:
    """The board of --suite, or all boards; prints a warning for each entry that is left out."""
    from leaderboard.build_board import ranked_board
    from leaderboard.published_results import published_suites

    suites = published_suites(results)
    if not suites:
        raise UserError(f"{results} has no entries; add one with `bench submit`, or give another --results")
    if args.suite not in (None, *suites):
        raise UserError(f"suite '{args.suite}' has no entries in {results}; suites with entries: {', '.join(suites)}")
    ranked = [ranked_board(results, name) for name in ([args.suite] if args.suite else suites)]
    for problem in (problem for each in ranked for problem in each.board.left_out):
        print(f"warning: {problem}", file=sys.stderr)
    return ranked


def _print_speedrun(args: argparse.Namespace, results: Path) -> None:
    from leaderboard.speedrun import render_speedrun

    boards = [each.board for each in _ranked_boards(args, results)]
    print(render_speedrun(boards, args.format or "markdown", _width(args.format)))


def _print_boards(args: argparse.Namespace, results: Path) -> None:
    from leaderboard.board_tables import render_boards

    boards = [each.board for each in _ranked_boards(args, results)]
    print(render_boards(boards, args.format or "markdown", _width(args.format)))


def _write_page(args: argparse.Namespace, results: Path) -> None:
    """Write the page, and the boards in every format beside it; prints the path of the page."""
    from leaderboard.board_tables import render_boards
    from leaderboard.page import write_page

    if args.repository is not None and not args.repository.startswith(("https://", "http://")):
        raise UserError(f"--repository '{args.repository}' is not an address; write https://HOST/...")
    ranked = _ranked_boards(args, results)
    boards, details = [each.board for each in ranked], [_detail(each, args) for each in ranked]
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
