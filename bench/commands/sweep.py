"""`bench sweep`."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from bench.commands import options
from bench.commands.arguments import integer, seed_list
from bench.commands.runs import print_records, request_of
from bench.core.columns import columns
from bench.core.config import get_suite
from bench.core.counts import counted
from bench.core.errors import CheckError, UserError
from bench.core.spec_text import split_specs

if TYPE_CHECKING:
    from bench.runs.request import Request
    from bench.runs.sweep import Options


def add(commands: Any) -> None:
    sub = commands.add_parser("sweep", help="run every defense of a suite with several seeds, in parallel")
    option = sub.add_argument
    option("--suite", required=True, metavar="NAME", help="a name from `bench list suites`, or FILE.toml")
    help_text = "names, or with settings, as in trades:beta=5 (default: all that support the suite)"
    option("--defenses", metavar="NAME,...", help=help_text)
    option(
        "--seeds",
        type=seed_list("--seeds"),
        default=[0, 1, 2],
        metavar="0,1,2",
        help="or a range, as in 0-4 (default: 0,1,2)",
    )
    help_text = "where the runs are computed: a name from `bench list engines`, as in slurm:partition=gpu:gpus=1"
    option("--engine", default="local", metavar="SPEC", help=help_text)
    help_text = "parallel tasks (default: one per core, or as many as the engine's cluster takes)"
    option("--jobs", type=integer("--jobs", 1, 1024), metavar="N", help=help_text)
    help_text = "divide each evaluation into N parallel tasks, with the same result (default: 1)"
    option("--shards", type=integer("--shards", 1, 1024), default=1, metavar="N", help=help_text)
    help_text = "keep the runs in an object store too, such as s3://BUCKET/runs: for machines that share no files"
    option("--store", metavar="URL", help=help_text)
    option("--dry-run", action="store_true", help="print the runs and their estimated work, and compute nothing")
    options.add_training(sub)
    options.add_evaluation(sub)
    sub.set_defaults(act=act_sweep)


def act_sweep(args: argparse.Namespace) -> None:
    get_suite(args.suite)  # unknown names fail before torch is loaded
    request = request_of(args)
    from bench.runs.sweep import Options, sweep

    names = None if args.defenses is None else list(dict.fromkeys(split_specs(args.defenses)))
    how = Options(engine=args.engine, jobs=args.jobs, shards=args.shards, store=args.store)
    if args.dry_run:
        if args.json:
            raise UserError("--json prints records, and --dry-run makes none; leave one of them out")
        _print_plan(request, names, args.seeds, how)
        return
    result = sweep(request, names, args.seeds, how)
    for what, reason in (result.refused | result.failed).items():
        print(f"{what}: {reason}", file=sys.stderr)
    print_records(result.records, args.json)
    if result.failed:
        raise CheckError(
            f"{counted(len(result.failed), 'run')} of the sweep failed, the first is {next(iter(result.failed))}"
        )


def _print_plan(request: Request, names: list[str] | None, seeds: list[int], how: Options) -> None:
    """Print the cells, the remaining tasks and work of each, and the script for a scheduler."""
    from bench.runs.estimate import EstimatedPasses, estimate, finished_records
    from bench.runs.store import Store
    from bench.runs.sweep import is_finished, make_engine, plan_cells, resources_of
    from leaderboard.published_results import results_folder

    engine = make_engine(how.engine)
    script = engine.script(resources_of(request, how))
    cells, refused = plan_cells(request, names, seeds, how)
    store = None if how.store is None else Store(how.store, request.out)
    records = finished_records([request.out, results_folder()])
    of_defense: dict[str, EstimatedPasses] = {}  # the work does not depend on the seed
    rows, training, evaluation, unknown = [("run", "training", "evaluation", "folder")], 0.0, 0.0, set[str]()
    for cell in cells:
        name, folder = cell.plan.name, str(cell.plan.folder(cell.seed))
        if is_finished(cell, None) or (store is not None and store.is_finished(cell.plan.folder(cell.seed))):
            rows.append((str(cell), "finished", "finished", folder))
            continue
        work = of_defense[name] = of_defense.get(name) or estimate(cell.plan, records)
        training, evaluation = (
            training + (0 if math.isnan(work.training) else work.training),
            evaluation + work.evaluation,
        )
        unknown |= {*work.unknown, *([f"training of {name}"] if math.isnan(work.training) else [])}
        rows.append((str(cell), _passes(work.training), _passes(work.evaluation), folder))
    rows.append(("sum", _passes(training), _passes(evaluation), ""))
    print(columns(rows))
    print(
        "\nWork is counted in passes of one example, forward or backward. That of a training is estimated from one "
        "of its steps, that of attacks from finished and published runs; certifiers, and bounds in a training, are not "
        "counted."
    )
    if unknown:
        print(f"Not in the sum, because no finished run has it: {', '.join(sorted(unknown))}.")
    for name, reason in refused.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if script:
        print(f"\nThe script of each task:\n\n{script}")


def _passes(number: float) -> str:
    from leaderboard.render import compact

    return "unknown" if math.isnan(number) else compact(number)
