"""argparse types, and a parser whose errors are one line."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from bench.core.errors import UserError
from bench.core.specs import parse_value


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, with the nearest name of an unknown option."""

    options: ClassVar[set[str]] = set()  # of all commands: unknown options are reported by the top-level parser

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        self.options.update(names)
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        if unknown := re.fullmatch(r"unrecognized arguments: (--[\w-]+)(.*)", message):
            nearest = difflib.get_close_matches(unknown[1], self.options, n=1)
            message = f"unknown option {unknown[1]}{f'; did you mean {nearest[0]}?' if nearest else ''}"
        fail(f"{message}; see `{self.prog} --help`")


def fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


# Types of options, for argparse. UserError is not an error that argparse handles: it reaches bench.cli.main.


def eps_list(text: str) -> tuple[float, ...]:
    """Numbers or fractions such as 8/255, separated by commas."""
    return tuple(dict.fromkeys(parse_value(word, float, "--eps") for word in text.split(",")))


def integer(option: str, low: int, high: int | None = None) -> Callable[[str], int]:
    """An integer from `low` to `high`."""

    def parse(text: str) -> int:
        value: int = parse_value(text, int, option)
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"{option} must be {allowed}, not {value}")
        return value

    return parse


def seed_list(text: str) -> list[int]:
    """Seeds separated by commas."""
    seeds: list[int] = list(dict.fromkeys(parse_value(text, tuple[int, ...], "--seeds")))
    if not seeds or min(seeds) < 0:
        raise UserError(f"--seeds takes integers of at least 0, such as 0,1,2, not '{text}'")
    return seeds


def spec_list(option: str) -> Callable[[str], list[str]]:
    """Specs separated by commas; [] for `none`."""

    def parse(text: str) -> list[str]:
        specs = [spec.strip() for spec in text.split(",")]
        if "" in specs:
            raise UserError(f"{option} '{text}' has an empty spec; separate specs by single commas, or write none")
        return [] if specs == ["none"] else specs

    return parse


def duration(text: str) -> float:
    """`90s`, `10m` or `2h`, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = 0.0 if match is None else float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if not 0 < seconds < 1e9:
        raise UserError(f"--budget takes a duration such as 90s, 10m or 2h, not '{text}'")
    return seconds
