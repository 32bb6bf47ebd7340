"""`bench submit`: publish a run, or contest a published one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.arguments import seed_list, task_of
from bench.commands.options import add_suites_option, add_verification, verification_settings
from bench.core.config import add_suites
from bench.core.errors import UserError

if TYPE_CHECKING:
    from leaderboard.published_results import About


# options of submissions and of contests
OF_BOTH = ("attack", "sample", "seed", "threads", "data_dir", "plugins", "check", "fetch", "artifacts")
ABOUT = ("title", "paper", "licence", "authors", "url", "code", "extra_data", "note", "maintainers")
TASKS = {  # and the options that each uses
    "entry": (*OF_BOTH, *ABOUT, "reason", "with_files", "author", "contests"),
    "contest": (*OF_BOTH, "weights", "by"),
    "reproduces": ("by",),
}


def add(commands: Any) -> None:
    sub = commands.add_parser("submit", help="verify a run and publish it, or contest a published run")
    option = sub.add_argument
    option("run", type=Path, metavar="RUN", help="a run folder, or a folder of seeds; with --contest: witnesses (.npz)")
    option("--entry", metavar="NAME", help="name of the entry, a folder of its suite")
    option("more", nargs="*", help=argparse.SUPPRESS)  # what a pattern of the shell finds besides
    option("--title", metavar="TEXT", help="title on the page (required for an entry)")
    option("--paper", metavar="TEXT", help="reference, for example 'Madry et al. (2018)' (required for an entry)")
    help_text = "licence of weights and code, for example MIT (required for an entry)"
    option("--licence", metavar="TEXT", help=help_text)
    option("--authors", metavar="TEXT", default="", help="authors of the method")
    option("--url", metavar="URL", help="address of the paper")
    option("--code", metavar="URL", help="address of the code")
    option("--extra-data", action="store_true", help="the training used more than the suite's training set")
    option("--note", metavar="TEXT", help="a remark on the page")
    help_text = "a GitHub account that may add seeds to the entry; repeatable"
    option("--maintainer", action="append", default=[], dest="maintainers", metavar="ACCOUNT", help=help_text)
    option("--reason", metavar="TEXT", help="why a seed is far from the others of its entry")
    option("--artifacts", metavar="URL", help="public https folder of SEED/weights.safetensors; with --contest: a file")
    help_text = "seeds whose weights, witnesses and proofs are copied into the entry, for example 0"
    option("--with-files", type=seed_list("--with-files"), default=[], metavar="0,1", help=help_text)
    option("--check", action="store_true", help="verify only, write nothing")
    option("--author", metavar="ACCOUNT", help="with --check: who opened the pull request")
    option("--contests", type=Path, metavar="DIR", help="with --check: where to write contests that it lacks")
    option("--fetch", action="store_true", help="download the files that the record names by an address")
    help_text = "import this file of the run's code (read it first); repeatable"
    option("--trust-code", action="append", default=[], dest="plugins", type=Path, metavar="FILE", help=help_text)
    option("--contest", metavar="SUITE/ENTRY/SEED", help="lower this published run by the witnesses in RUN")
    option("--weights", type=Path, metavar="FILE", help="weights of the contested run")
    option("--by", metavar="NAME", help="author of the contest, or of the reproduction")
    help_text = "RUN are trainings of a maintainer of the board by the command of this entry: mark it as reproduced"
    option("--reproduces", metavar="SUITE/ENTRY", help=help_text)
    option("--results", type=Path, metavar="DIR", help="published results (default: those of this package)")
    add_suites_option(sub)
    add_verification(sub, min_sample=1, seed="one that follows from the weights")
    sub.set_defaults(act=act_submit)


def act_submit(args: argparse.Namespace) -> None:
    if args.more:
        raise UserError(f"give one folder; found {1 + len(args.more)}: {', '.join(map(str, [args.run, *args.more]))}")
    if not task_of(args, TASKS):
        raise UserError("give --entry NAME to publish a run, or --contest SUITE/ENTRY/SEED to contest one")
    if not args.check and (only := [name for name in ("author", "contests") if getattr(args, name) is not None]):
        raise UserError(f"--{only[0]} is for --check; give that too, or leave it out")
    about = _about(args)
    if args.suites is not None:
        add_suites(args.suites)
    if args.reproduces is not None:
        if args.by is None:
            raise UserError("a reproduction needs --by NAME, who has trained the recipe again")
        from bench.publish.reproduce import reproduce
        from leaderboard.published_results import results_folder

        print(f"written: {reproduce(args.results or results_folder(), args.reproduces, args.run, args.by)}")
        return
    if args.contest is not None and args.check != args.fetch:
        raise UserError("checking a contest downloads its files; give both --check and --fetch, or neither")
    if args.contest is not None and not args.check and (args.weights is None or args.by is None):
        raise UserError("a contest needs --weights FILE, the weights of the entry, and --by NAME")
    from bench.publish.contest import contest_run, recheck_contest
    from bench.publish.submit import Submission, submit_runs
    from leaderboard.published_results import results_folder

    results = args.results or results_folder()
    settings = verification_settings(args)
    if args.contest is None:
        submission = Submission(
            run=args.run,
            entry=args.entry,
            results=results,
            about=about,
            artifacts_url=args.artifacts,
            with_files=tuple(args.with_files),
            seed=args.seed,
            author=args.author,
            reason=args.reason,
            contests=args.contests,
        )
        submit_runs(submission, settings, check_only=args.check, fetch=args.fetch)
    elif args.check:
        recheck_contest(results, args.contest, args.run, settings=settings)
    else:
        contest_run(
            results, args.contest, args.run, weights=args.weights, by=args.by, settings=settings, url=args.artifacts
        )


def _about(args: argparse.Namespace) -> About | None:
    """The entry's description from the options; None if no such option is given."""
    missing = [option for option in ("title", "paper", "licence") if getattr(args, option) is None]
    if len(missing) == 3:
        return None
    if missing:
        options = " and ".join(f"--{name}" for name in missing)
        raise UserError(f"an entry needs a title, a paper and a licence; give {options} too")
    from leaderboard.published_results import About

    fields = {field: getattr(args, field) for field in About.__struct_fields__}
    return About(**fields | {"maintainers": tuple(args.maintainers)})
