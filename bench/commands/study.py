"""`bench study`."""

import argparse
from typing import Any

from bench.commands.catalog import show_entry
from bench.commands.options import add_plugin, add_quiet
from bench.core import registry
from bench.core.errors import UserError
from bench.core.registry import did_you_mean
from bench.core.spec_text import split_options
from bench.core.specs import options_of, parse_value

# options of studies that need no --set
STUDY_OPTIONS = (
    "table", "checkpoints", "runs", "checkpoint", "model", "dataset", "data_dir", "n_examples", "figure", "seed",
    "size", "out",
)  # fmt: skip


def add(commands: Any) -> None:
    about = "run an experiment of a paper that is neither a defense nor an attack"
    sub = commands.add_parser("study", help=about, add_help=False)
    sub.add_argument("-h", "--help", action="store_true", dest="show_help", help="with NAME: the options of this study")
    sub.add_argument("name", nargs="?", metavar="NAME", help="a name from `bench list studies`")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a study option; repeatable")
    for name in STUDY_OPTIONS:
        sub.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"short for --set {name}=VALUE")
    sub.add_argument(
        "--json", action="store_const", const="true", help="short for --set json=true, where a study has it"
    )
    add_plugin(sub)
    add_quiet(sub)
    sub.set_defaults(act=act_study, parser=sub)


def act_study(args: argparse.Namespace) -> None:
    registry.load_plugins(args.plugins)
    if args.name is None:
        if not args.show_help:
            raise UserError(
                f"name a study: {', '.join(registry.study.names())}; `bench study NAME --help` explains one"
            )
        args.parser.print_help()
        return
    if args.show_help:
        show_entry("studies", args.name)
        return
    study = registry.study.get(args.name)
    hints = options_of(study)
    options = {}
    given = [f"{name}={value}" for name in (*STUDY_OPTIONS, "json") if (value := getattr(args, name)) is not None]
    for key, value in split_options([*args.set, *given], "--set").items():
        if key not in hints:
            hint = did_you_mean(key, hints)
            raise UserError(f"study '{args.name}' has no option '{key}': {hint}its options are {', '.join(hints)}")
        options[key] = parse_value(value, hints[key][0], f"study '{args.name}': {key}")
    print(study(**options).run())
