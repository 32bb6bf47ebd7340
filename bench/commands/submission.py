"""`bench submit`: publish a run, or contest one that is published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.arguments import whole
from bench.commands.options import add_machine
from bench.core.errors import UserError

if TYPE_CHECKING:
    from leaderboard.published_results import About


def add(commands: Any) -> None:
    sub = commands.add_parser("submit", help="verify a run and publish it, or contest a published one by witnesses")
    sub.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a folder of seeds; of a contest: an .npz")
    sub.add_argument("--entry", metavar="NAME", help="the folder of its suite that the run goes into")
    sub.add_argument("--title", metavar="TEXT", help="what the page calls it")
    sub.add_argument("--paper", metavar="TEXT", help="as people cite it")
    sub.add_argument("--licence", metavar="TEXT", help="of the weights and the code, as MIT")
    sub.add_argument("--authors", metavar="TEXT", default="")
    sub.add_argument("--url", metavar="URL", help="of the paper or the code")
    sub.add_argument("--extra-data", action="store_true", help="trained on more than the suite's training set")
    sub.add_argument("--note", metavar="TEXT")
    sub.add_argument("--artifacts", metavar="URL", help="https folder of SEED/weights.safetensors; of a contest: file")
    sub.add_argument("--check", action="store_true", help="verify only, write nothing")
    sub.add_argument("--fetch", action="store_true", help="download what the record names by an address")
    sub.add_argument(
        "--trust-code", action="append", default=[], type=Path, metavar="FILE", help="import this file of the run's"
    )
    sub.add_argument("--contest", metavar="SUITE/ENTRY/SEED", help="lower this entry by the witnesses of RUN")
    sub.add_argument("--weights", type=Path, metavar="FILE", help="of the entry that is contested")
    sub.add_argument("--by", metavar="NAME", help="who contests")
    sub.add_argument("--results", type=Path, metavar="DIR", help="default: those that come with this package")
    sub.add_argument("--sample", type=whole("--sample", 1), metavar="N", help="claimed-robust examples to attack again")
    sub.add_argument("--attack", metavar="SPEC", help="what attacks them, as pgd-50:restarts=5")
    sub.add_argument("--seed", type=whole("--seed", 0, 2**31 - 1), help="of the sample and the attack (default: drawn)")
    add_machine(sub)
    sub.set_defaults(act=act_submit)


def act_submit(args: argparse.Namespace) -> None:
    about = _about(args)
    if args.contest is None and args.entry is None:
        raise UserError("give --entry NAME for the folder that the run goes into, or --contest SUITE/ENTRY/SEED")
    if args.contest is not None and args.check != args.fetch:
        raise UserError("a contest is checked from its addresses; give both --check and --fetch, or none of them")
    if args.contest is not None and not args.check and (args.weights is None or args.by is None):
        raise UserError("a contest needs --weights FILE, those of the entry, and --by NAME")
    from bench.publish.contest import contest_run, recheck_contest
    from bench.publish.submit import Submission, submit_runs
    from bench.verify.run import settings
    from leaderboard.published_results import results_folder

    results = args.results or results_folder()
    chosen = settings(
        attack=args.attack, sample=args.sample, seed=args.seed, device=args.device, threads=args.threads,
        data_dir=args.data_dir, plugins=args.trust_code,
    )  # fmt: skip
    if args.contest is None:
        submission = Submission(
            run=args.run, entry=args.entry, results=results, about=about, artifacts_url=args.artifacts
        )
        submit_runs(submission, chosen, check_only=args.check, fetch=args.fetch)
    elif args.check:
        recheck_contest(results, args.contest, args.run, settings=chosen)
    else:
        contest_run(
            results, args.contest, args.run, weights=args.weights, by=args.by, settings=chosen, url=args.artifacts
        )


def _about(args: argparse.Namespace) -> About | None:
    """What the words say of the entry; None where they say nothing."""
    if (args.title, args.paper, args.licence) == (None, None, None):
        return None
    for option in ("title", "paper", "licence"):
        if getattr(args, option) is None:
            raise UserError(f"an entry names its title, paper and licence; --{option} is missing")
    from leaderboard.published_results import About

    return About(
        title=args.title, paper=args.paper, licence=args.licence, authors=args.authors, url=args.url,
        extra_data=args.extra_data, note=args.note,
    )  # fmt: skip
