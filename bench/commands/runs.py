"""`bench run`, `bench eval`, `bench sweep` and `bench verify`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands import options
from bench.commands.arguments import integer, seed_list
from bench.core import registry
from bench.core.config import get_suite
from bench.core.errors import CheckError, UserError
from bench.core.spec_text import split_options

if TYPE_CHECKING:
    from bench.core.records import Record
    from bench.runs.request import Request


def add(commands: Any) -> None:
    sub = commands.add_parser("run", help="train and evaluate a defense; continues an interrupted run")
    sub.add_argument("--defense", required=True, metavar="NAME", help="a name from `bench list defenses`")
    options.add_training(sub)
    options.add_setting(sub)
    options.add_evaluation(sub)
    sub.set_defaults(act=act_run)

    sub = commands.add_parser("eval", help="evaluate existing weights")
    sub.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help=".safetensors, or a state dict")
    options.add_setting(sub)
    options.add_evaluation(sub)
    sub.set_defaults(act=act_run, epochs=None, set=[])

    sub = commands.add_parser("sweep", help="run every defense of a suite with several seeds, in parallel")
    option = sub.add_argument
    option("--suite", required=True, metavar="NAME", help="a name from `bench list suites`")
    option("--defenses", metavar="NAME,...", help="default: all that support the suite")
    option("--seeds", type=seed_list, default=[0, 1, 2], metavar="0,1,2", help="default: 0,1,2")
    option("--jobs", type=integer("--jobs", 1, 1024), metavar="N", help="parallel runs (default: one per core)")
    options.add_training(sub)
    options.add_evaluation(sub)
    sub.set_defaults(act=act_sweep)

    sub = commands.add_parser("verify", help="check the evidence of runs again: files, labels, witnesses, certificates")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    options.add_verification(sub, min_sample=0)
    sub.add_argument("--json", action="store_true", help="print findings as JSON")
    options.add_plugin(sub)
    sub.set_defaults(act=act_verify)


def act_run(args: argparse.Namespace) -> None:
    request = _request(args)
    from bench.runs.plan import make_plan
    from bench.runs.run import run_seed
    from leaderboard.run_tables import run_table

    plan = make_plan(request)
    records: list[Record] = []
    for seed in args.seeds:
        finished = (plan.folder(seed) / "record.json").exists()
        record, folder = run_seed(plan, seed)
        records.append(record)
        if not args.json:
            when = f" (was finished already, {record.provenance.get('finished')})" if finished else ""
            print(f"\n{run_table(record)}\n\nrun folder: {folder}{when}")
    if args.json or len(records) > 1:
        _print(records, args.json)


def act_sweep(args: argparse.Namespace) -> None:
    get_suite(args.suite)  # unknown names fail before torch is loaded
    request = _request(args)
    from bench.runs.sweep import sweep

    names = None if args.defenses is None else list(dict.fromkeys(args.defenses.split(",")))
    result = sweep(request, names, args.seeds, args.jobs)
    for what, reason in (result.refused | result.failed).items():
        print(f"{what}: {reason}", file=sys.stderr)
    _print(result.records, args.json)
    if result.failed:
        raise CheckError(f"{len(result.failed)} runs of the sweep failed, the first is {next(iter(result.failed))}")


def _print(records: list[Record], as_json: bool) -> None:
    from leaderboard.run_tables import runs_table

    if as_json:
        options.print_json(records)
    else:
        print(f"\n{runs_table(records, 'markdown')}")


def _request(args: argparse.Namespace) -> Request:
    """The request whose fields have the names of the options. Unknown names fail before torch is loaded."""
    overrides = split_options(args.set, "--set")
    if args.epochs is not None:
        if "epochs" in overrides:
            raise UserError("--epochs and --set epochs=... are both given; keep one")
        overrides["epochs"] = str(args.epochs)
    if "defense" in args and not args.plugins and args.defense not in registry.defense:
        registry.defense.get(args.defense)
    if args.budget is not None and args.bracket is None:
        raise UserError("--budget is for --bracket; give --bracket too")
    from bench.runs.request import Request

    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(Request) if field.name in args}
    return Request(**fields | {"overrides": overrides, "bracket": args.budget or args.bracket})


def act_verify(args: argparse.Namespace) -> None:
    from bench.core.record_files import find_records
    from bench.verify.report import findings_table
    from bench.verify.run import verify

    folders = find_records(args.runs)
    settings = options.verification_settings(args)
    reports = {str(folder): verify(folder, settings) for folder in folders}
    if args.json:
        used = {"attack": settings.attack, "sample": settings.sample, "seed": settings.seed}
        options.print_json([{"run": run, **used, "findings": report} for run, report in reports.items()])
    else:
        print("\n\n".join(f"{run}\n{findings_table(report)}" for run, report in reports.items()))
    failed = [run for run, report in reports.items() if any(finding.outcome == "failed" for finding in report)]
    if failed:
        raise CheckError(f"{len(failed)} of {len(reports)} runs failed, the first is {failed[0]}")
