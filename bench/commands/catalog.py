"""`bench list`."""

import argparse
import dataclasses
import inspect
import re
import textwrap
from contextlib import suppress
from typing import Any

from bench.commands.options import add_plugin, print_json
from bench.core import registry
from bench.core.columns import columns, output_width
from bench.core.config import Suite, get_suite, suites
from bench.core.errors import UserError
from bench.core.registry import did_you_mean
from bench.core.spec_text import split_spec
from bench.core.specs import look_up, show_value

WIDEST = 120  # characters of a line of a docstring

KINDS: dict[str, registry.Registry] = {
    "defenses": registry.defense,
    "attacks": registry.attack,
    "libraries": registry.library,
    "certifiers": registry.certifier,
    "datasets": registry.dataset,
    "corruptions": registry.corruption,
    "models": registry.model,
    "model-libraries": registry.model_library,
    "studies": registry.study,
    "engines": registry.engine,
}
HOW_TO_SET = {
    "defenses": "bench run --defense {name} --set KEY=VALUE (a suite may set others: `bench list suites NAME`)",
    "studies": "bench study {name} --set KEY=VALUE",
    "engines": "bench sweep --engine {name}:OPTION=VALUE",
}  # for all other kinds: in the spec


def add(commands: Any) -> None:
    sub = commands.add_parser(
        "list", help="list defenses, attacks, certifiers, data sets, models, studies, engines, suites"
    )
    help_text = f"{', '.join([*KINDS, 'suites'])} (default: all), or a NAME of any kind"
    sub.add_argument("kind", nargs="?", metavar="KIND", help=help_text)
    sub.add_argument("name", nargs="?", metavar="NAME", help="one of this kind: what it does, and its options")
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_plugin(sub)
    sub.set_defaults(act=act_list)


def act_list(args: argparse.Namespace) -> None:
    registry.load_plugins(args.plugins)
    if args.kind not in (None, *KINDS, "suites"):
        if args.name is not None:
            raise _unknown_kind(args.kind)
        args.kind, args.name = _kind_of(args.kind), args.kind
    if args.name is not None:
        show_entry(args.kind, args.name, as_json=args.json)
        return
    kinds = [args.kind] if args.kind else [*KINDS, "suites"]
    listing = {kind: _summaries(kind) for kind in kinds}
    if args.json:
        print_json(listing[args.kind] if args.kind else listing)
        return
    for number, (kind, summaries) in enumerate(listing.items()):
        if not args.kind:
            print("\n" * (number > 0), end="")
            print(f"{kind}:" if summaries else f"{kind}: none yet")
        if summaries:
            print(columns(list(summaries.items()), indent="" if args.kind else "  "))


def _kind_of(name: str) -> str:
    """The kind that has an entry of this name; UserError if none or several have."""
    bare, found = split_spec(name).name, []
    for kind in KINDS:
        with suppress(UserError):
            look_up(bare, KINDS[kind])
            found.append(kind)
    found += ["suites"] if bare in suites() else []
    if len(found) > 1:
        raise UserError(
            f"'{name}' is in {' and in '.join(found)}; write one of them first: bench list {found[0]} {name}"
        )
    if not found:
        raise _unknown_kind(name)
    return found[0]


def _unknown_kind(name: str) -> UserError:
    kinds = [*KINDS, "suites"]
    hint = did_you_mean(name, [*kinds, *(each for kind in kinds for each in _summaries(kind))])
    return UserError(f"'{name}' is no kind and no name: {hint}the kinds are {', '.join(kinds)}")


def _summaries(kind: str) -> dict[str, str]:
    if kind == "suites":
        return {name: suite.summary for name, suite in suites().items()}
    return {name: entry.summary for name, entry in KINDS[kind].entries().items()}


def show_entry(kind: str, name: str, *, as_json: bool = False) -> None:
    """Print what an entry is, and its options with defaults, meanings and types."""
    from bench.core.option_docs import document_options

    if kind == "suites":
        _show_suite(get_suite(name), as_json=as_json)
        return
    target: Any = look_up(split_spec(name).name, KINDS[kind])[0]
    options = document_options(target.config_class if kind == "defenses" else target)
    if as_json:
        print_json({"name": name, "about": inspect.getdoc(target) or "", "options": [o._asdict() for o in options]})
        return
    print(f"{name}\n\n{_filled(inspect.getdoc(target) or 'It has no description.')}\n")
    if not options:
        print("It has no options.")
        return
    print(_filled(f"Options: {HOW_TO_SET.get(kind, '{name}:OPTION=VALUE').format(name=name)}"))
    rows = [(f"{o.name}={_short(o.default)}", f"{o.meaning} ({o.type})" if o.meaning else o.type) for o in options]
    print(columns(rows, indent="  "))


def _short(default: str) -> str:
    """A default with at most six digits per number."""
    return re.sub(r"\d+\.\d{7,}", lambda number: f"{float(number[0]):.6g}", default)


def _show_suite(suite: Suite, *, as_json: bool) -> None:
    rules = {field.name: getattr(suite, field.name) for field in dataclasses.fields(suite)}
    if as_json:
        print_json(rules)
        return
    tables = {"training": rules.pop("training"), **rules.pop("defenses")}
    rows = [
        (key, ", ".join(map(str, value)) if isinstance(value, tuple) else show_value(value))
        for key, value in rules.items()
    ]
    print(columns([row for row in rows if row[1] != "None"]))
    print("\nSettings that all defenses train with, and those of single ones:")
    settings = [
        (name, ", ".join(f"{key}={show_value(value)}" for key, value in tables[name].items())) for name in tables
    ]
    print(columns(settings, indent="  "))


def _filled(doc: str) -> str:
    """A docstring with its paragraphs and list items filled to the width of the output."""
    width = min(output_width(), WIDEST)
    paragraphs = [
        "\n".join(
            textwrap.fill(" ".join(item.split()), width, subsequent_indent="  " * item.startswith("- "))
            for item in re.split(r"\n(?=- )", part)
        )
        for part in doc.strip().split("\n\n")
    ]
    return "\n\n".join(paragraphs)
