"""Descriptions and examples for every `--help`, and the shell completion script."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from bench.core.extras import import_extra

EXAMPLES = {
    "list": "bench list defenses atas",
    "study": "bench study lazy-regime --size small --seed 0 --figure lazy.pdf",
    "pack": "bench pack runs/RUN/0 net.packed",
    "show": "bench show runs/RUN/0",
    "run": "bench run --defense pgd-at --suite digits --seeds 0,1,2",
    "eval": "bench eval --checkpoint net.pt --model cnn --dataset mnist --eps 0.1 --bracket",
    "sweep": "bench sweep --suite digits --defenses pgd-at,trades --attacks pgd-50,autoattack",
    "verify": "bench verify runs --sample 64 --attack pgd-50:restarts=5",
    "recheck": "bench recheck runs/RUN/0 --examples",
    "table": "bench table runs --format latex",
    "compare": "bench compare runs/RUN digits/pgd-at",
    "leaderboard": "bench leaderboard --suite digits --html page",
    "check": "bench check --baseline baseline runs --junit gate.xml",
    "ranks": "bench ranks scores.csv --format csv",
    "export": "bench export runs/RUN/0 --vnnlib instances --open",
    "import-verdicts": "bench import-verdicts runs/RUN/0 results.csv --by abcrown --counterexamples found",
    "submit": "bench submit runs/RUN --entry mine --title Mine --paper 'N. N. (2026)' --licence MIT",
}
PUBLISHED = ("table", "compare", "show", "recheck")  # commands that also read published results
PUBLISHED_NOTE = "A published result is named SUITE/ENTRY or SUITE/ENTRY/SEED, as in digits/atas/0."
SHELLS = ("bash", "zsh", "tcsh")


class Commands:
    """The sub-parsers of the program. A command's `help` is also its description, and an example ends its help."""

    def __init__(self, subparsers: Any) -> None:
        self.subparsers = subparsers

    def add_parser(self, name: str, *, help: str, epilog: str = "", **options: Any) -> Any:  # noqa: A002 (argparse's)
        notes = [epilog, PUBLISHED_NOTE if name in PUBLISHED else ""]
        text = "".join(f"{note}\n\n" for note in notes if note)
        described = {"description": f"{help[0].upper()}{help[1:]}.", "epilog": f"{text}For example: {EXAMPLES[name]}"}
        return self.subparsers.add_parser(name, help=help, **(described | options))


class PrintCompletion(argparse.Action):
    """Print the completion script of a shell; UserError without shtab."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        shtab = import_extra("shtab", "completion", str(option))
        print(shtab.complete(parser, shell=values))
        raise SystemExit(0)
