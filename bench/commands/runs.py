"""`bench run`, `bench eval` and `bench verify`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands import options
from bench.core import registry
from bench.core.errors import CheckError, UncheckedError, UserError
from bench.core.spec_text import split_options

if TYPE_CHECKING:
    from bench.core.records import Record
    from bench.runs.plan import Plan
    from bench.runs.request import Request
    from bench.verify.inputs import Settings
    from bench.verify.report import Finding
    from bench.verify.summary import Summary

VERIFY_EXIT_CODES = (
    "Exit code 0: every run is verified (a run whose attacks are weaker than --attack is, and the report says so); "
    "1: a check failed; 2: a mistake in the command; 3: predictions or witnesses of a run could not be checked. The "
    "findings are stored in RUN/verification.json, and every command prints the verdict of the run with them: "
    "unreliable after a failed check, suspect if --attack is stronger than the run's attacks. Delete the file to undo "
    "this. Nothing is stored in a published entry (a folder below one with an about.toml)."
)


def add(commands: Any) -> None:
    sub = commands.add_parser("run", help="train and evaluate a defense; continues an interrupted run")
    help_text = "a name from `bench list defenses`, or with settings, as in at:attack=mi-fgsm"
    sub.add_argument("--defense", required=True, metavar="NAME", help=help_text)
    options.add_training(sub)
    options.add_setting(sub)
    options.add_evaluation(sub)
    sub.set_defaults(act=act_run)

    sub = commands.add_parser("eval", help="evaluate existing weights")
    help_text = ".safetensors, a state dict, or hf:ORG/NAME[/FILE][@REVISION] of the Hugging Face hub"
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

    about = "check the evidence of runs again: files, labels, witnesses, certificates"
    sub = commands.add_parser("verify", help=about, epilog=VERIFY_EXIT_CODES)
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    options.add_verification(sub, min_sample=0)
    sub.add_argument("--json", action="store_true", help="print findings as JSON")
    options.add_plugin(sub)
    sub.set_defaults(act=act_verify)


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
    budget = (args.budget or options.BUDGET) if args.bracket else None
    box = "box" not in args or args.box == "pixels"  # `bench sweep` has no such option
    return Request(**fields | {"overrides": overrides, "budget": budget, "box": box})


def act_verify(args: argparse.Namespace) -> None:
    from bench.core.record_files import find_records
    from bench.verify.report import findings_table
    from bench.verify.run import verify
    from bench.verify.summary import summarize

    folders = find_records(args.runs)
    settings = options.verification_settings(args)
    attack, sample, seed = settings.attack, settings.sample, settings.seed
    reports: dict[str, list[Finding]] = {}
    summaries: dict[str, Summary] = {}
    notes: dict[str, str] = {}
    for folder in folders:
        run, result = str(folder), verify(folder, settings)
        reports[run] = result.findings
        summaries[run] = summarize(result.findings, advice=result.advice, lowered=result.lowered)
        notes[run] = _store(folder, result.findings, settings)
    if args.json:
        options.print_json([
            {
                "run": run, "attack": attack, "sample": sample, "seed": seed, "outcome": summaries[run].status,
                "counts": summaries[run].counts, "lowered": summaries[run].lowered, "findings": report,
            }
            for run, report in reports.items()
        ])  # fmt: skip
    else:
        parts = [
            f"{run}\n{findings_table(report)}\n{notes[run]}{summaries[run].as_line()}"
            for run, report in reports.items()
        ]
        print("\n\n".join(parts))
    failed, incomplete = ([run for run in reports if summaries[run].status == s] for s in ("failed", "incomplete"))
    if failed:
        raise CheckError(f"{len(failed)} of {len(reports)} runs failed, the first is {failed[0]}")
    if incomplete:
        first = f"the first is {incomplete[0]}: {summaries[incomplete[0]].obstacle}"
        raise UncheckedError(f"{len(incomplete)} of {len(reports)} runs could not be verified, {first}")


def _store(folder: Path, findings: list[Finding], settings: Settings) -> str:
    """Store the findings beside the record, except in a published entry; a line if they change the verdict, or ""."""
    from bench.core.record_files import read_record
    from bench.core.verification import VERIFICATION, verified, write_verification
    from leaderboard.published_results import ABOUT
    from leaderboard.render import verdict_text

    if (folder.resolve().parent / ABOUT).exists():
        return ""
    try:
        write_verification(folder, findings, attack=settings.attack, sample=settings.sample, seed=settings.seed)
    except OSError as error:  # the folder may be read-only
        print(f"{folder}: the findings were not stored ({error.strerror})", file=sys.stderr)
        return ""
    try:
        record = read_record(folder)
    except UserError:  # which is a finding already
        return ""
    before, now = record.sanity.verdict, verified(record, folder).sanity.verdict
    if before == now:
        return ""
    return f"verdict: {verdict_text(now)}, by {folder / VERIFICATION} (the record's own: {verdict_text(before)})\n"
