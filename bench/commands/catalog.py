"""`bench list` and `bench study`."""

import argparse
from typing import Any

from bench.commands.options import add_plugin, print_json
from bench.core import registry
from bench.core.config import suites
from bench.core.errors import UserError
from bench.core.spec_text import split_options
from bench.core.specs import options_of, parse_value

# options of studies that can be given without --set
STUDY_OPTIONS = ("table", "checkpoints", "checkpoint", "model", "dataset", "data_dir", "n_examples", "figure")

KINDS: dict[str, registry.Registry] = {
    "defenses": registry.defense,
    "attacks": registry.attack,
    "libraries": registry.library,
    "certifiers": registry.certifier,
    "datasets": registry.dataset,
    "models": registry.model,
    "studies": registry.study,
}


def add(commands: Any) -> None:
    sub = commands.add_parser("list", help="list defenses, attacks, certifiers, data sets, models, studies, suites")
    sub.add_argument("kind", nargs="?", choices=[*KINDS, "suites"], help="default: all")
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_plugin(sub)
    sub.set_defaults(act=act_list)

    sub = commands.add_parser("study", help="run an experiment of a paper that is neither a defense nor an attack")
    sub.add_argument("name", metavar="NAME", help="a name from `bench list studies`")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a study option; repeatable")
    for name in STUDY_OPTIONS:
        sub.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"short for --set {name}=VALUE")
    add_plugin(sub)
    sub.set_defaults(act=act_study)


def act_list(args: argparse.Namespace) -> None:
    for path in args.plugins:
        registry.load_plugin(path)
    kinds = [args.kind] if args.kind else [*KINDS, "suites"]
    listing = {kind: _summaries(kind) for kind in kinds}
    if args.json:
        print_json(listing[args.kind] if args.kind else listing)
        return
    for kind, summaries in listing.items():
        if not args.kind:
            print(f"{kind}:" if summaries else f"{kind}: none yet")
        width = max(map(len, summaries), default=0)
        for name, summary in summaries.items():
            print(f"{'' if args.kind else '  '}{name:<{width}}  {summary}".rstrip())


def _summaries(kind: str) -> dict[str, str]:
    if kind == "suites":
        return {name: suite.summary for name, suite in suites().items()}
    return {name: entry.summary for name, entry in KINDS[kind].entries().items()}


def act_study(args: argparse.Namespace) -> None:
    for path in args.plugins:
        registry.load_plugin(path)
    study = registry.study.get(args.name)
    hints = options_of(study)
    options = {}
    given = [f"{name}={value}" for name in STUDY_OPTIONS if (value := getattr(args, name)) is not None]
    for key, value in split_options([*args.set, *given], "--set").items():
        if key not in hints:
            raise UserError(f"study '{args.name}' has no option '{key}'; its options are {', '.join(hints)}")
        options[key] = parse_value(value, hints[key][0], f"study '{args.name}': {key}")
    print(study(**options).run())
