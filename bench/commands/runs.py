"""`bench run` and `bench eval`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands import options
from bench.core import registry
from bench.core.errors import UserError
from bench.core.spec_text import split_options

if TYPE_CHECKING:
    from bench.core.records import Record
    from bench.runs.plan import Plan
    from bench.runs.request import Request


def add(commands: Any) -> None:
    sub = commands.add_parser("run", help="train and evaluate a defense; continues an interrupted run")
    help_text = "a name from `bench list defenses`, or with settings, as in at:attack=mi-fgsm"
    sub.add_argument("--defense", required=True, metavar="NAME", help=help_text)
    options.add_training(sub)
    options.add_setting(sub)
    options.add_evaluation(sub)
    sub.set_defaults(act=act_run)

    sub = commands.add_parser("eval", help="evaluate existing weights")
    help_text = "a run folder, .safetensors, a state dict, or hf:ORG/NAME[/FILE][@REVISION] of the Hugging Face hub"
    sub.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help=help_text)
    help_text = "key of the state dict to evaluate, if the checkpoint contains several, for example ema"
    sub.add_argument("--state-dict", metavar="KEY", help=help_text)
    help_text = "import this file of the checkpoint's code (read it first); repeatable"
    sub.add_argument(
        "--trust-code", action="append", default=[], dest="trusted", type=Path, metavar="FILE", help=help_text
    )
    options.add_setting(sub)
    options.add_evaluation(sub)
    sub.set_defaults(act=act_run, epochs=None, compile=False, set=[])


def act_run(args: argparse.Namespace) -> None:
    request = request_of(args)
    from bench.core import shares
    from bench.runs.plan import make_plan
    from bench.runs.processes import announce, of_torchrun
    from bench.runs.run import help_to_train

    with of_torchrun(request.device):
        plan = make_plan(request)
        if shares.is_first():
            _run_seeds(plan, args)
            announce(None)
        else:
            help_to_train(plan)


def _run_seeds(plan: Plan, args: argparse.Namespace) -> None:
    from bench.core.verification import verified
    from bench.runs.run import run_seed
    from leaderboard.render import terminal_width
    from leaderboard.single_run_tables import run_table

    records: list[Record] = []
    for seed in args.seeds:
        record, folder, finished_before = run_seed(plan, seed)
        record = verified(record, folder)
        records.append(record)
        if not args.json:
            note = f" ({finished_before})" if finished_before else ""
            print(f"\n{run_table(record, terminal_width())}\n\nrun folder: {folder}{note}")
    if args.json or len(records) > 1:
        print_records(records, args.json)


def print_records(records: list[Record], as_json: bool) -> None:
    from leaderboard.render import terminal_width
    from leaderboard.runs_table import runs_table

    if as_json:
        options.print_json(records)
    else:
        print(f"\n{runs_table(records, 'markdown', terminal_width())}")


def request_of(args: argparse.Namespace) -> Request:
    """The request whose fields have the names of the options. Unknown names fail before torch is loaded."""
    from bench.runs.request import Request, split_defense

    overrides = split_options(args.set, "--set")
    if "defense" in args:
        args.defense, overrides = split_defense(args.defense, overrides)
    for option, key, value in (("--epochs", "epochs", args.epochs), ("--compile", "compiled", args.compile or None)):
        if value is not None:
            if key in overrides:
                raise UserError(f"{option} and --set {key}=... are both given; keep one")
            overrides[key] = str(value).lower()
    if "defense" in args and not args.plugins and args.defense not in registry.defense:
        registry.defense.get(args.defense)
    for option, value in (("--budget", args.budget), ("--time-limit", args.time_limit)):
        if value is not None and not args.bracket:
            raise UserError(f"{option} is for --bracket; give --bracket too")
    if getattr(args, "log", None) is not None:
        from bench.runs.loggers import check_logger

        check_logger(args.log)
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(Request) if field.name in args}
    if str(fields.get("checkpoint")).startswith("hf:"):
        from bench.runs.hub import fetch

        found = fetch(str(fields["checkpoint"]))
        fields |= {"checkpoint": found.path, "origin": found.address}
    elif "checkpoint" in fields:
        fields["checkpoint"] = weights_of(fields["checkpoint"])
    budget = (args.budget or options.BUDGET) if args.bracket else None
    box = "box" not in args or args.box == "pixels"  # `bench sweep` has no such option
    return Request(**fields | {"overrides": overrides, "budget": budget, "box": box})


def weights_of(path: Path) -> Path:
    """The weights in a run folder; any other path unchanged. UserError if a folder has no weights."""
    from bench.core.record_files import WEIGHTS

    if not path.is_dir():
        return path
    if not (path / WEIGHTS).exists():
        seeds = sorted(folder.parent for folder in path.glob(f"*/{WEIGHTS}"))
        advice = (
            f"give the folder of one seed, such as {seeds[0]}" if seeds else "give a run folder or a file of weights"
        )
        raise UserError(f"{path} has no {WEIGHTS}; {advice}")
    return path / WEIGHTS
