"""argparse types, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn

from bench.core.errors import UserError
from bench.core.specs import parse_value


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, with the nearest name for an unknown one."""

    options: ClassVar[set[str]] = set()  # of all commands: unknown options are reported by the top-level parser

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        self.options.update(names)
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        choice = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        unknown = re.fullmatch(r"unrecognized arguments: (--[\w-]+)(.*)", message)
        if choice:
            allowed = [word.strip(" '") for word in choice[3].split(",")]
            message = f"{choice[1]} '{choice[2]}' is not one of {', '.join(allowed)}{_nearest(choice[2], allowed)}"
        elif unknown:
            message = f"unknown option {unknown[1]}{_nearest(unknown[1], self.options)}"
        fail(f"{message}; see `{self.prog} --help`")


def _nearest(word: str, allowed: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def eps_list(text: str) -> tuple[float, ...]:
    """An argparse type: numbers or fractions such as 8/255, separated by commas."""
    return tuple(dict.fromkeys(_parse(float, word, "--eps") for word in text.split(",")))


def integer(option: str, low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def parse(text: str) -> int:
        value: int = _parse(int, text, option)
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{option} must be {allowed}, not {value}")
        return value

    return parse


def seed_list(text: str) -> list[int]:
    """An argparse type: seeds separated by commas."""
    seeds: list[int] = list(dict.fromkeys(_parse(tuple[int, ...], text, "--seeds")))
    if not seeds or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"--seeds takes integers of at least 0, such as 0,1,2, not '{text}'")
    return seeds


def duration(text: str) -> float:
    """An argparse type: `90s`, `10m` or `2h`, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = 0.0 if match is None else float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"--budget takes a duration such as 90s, 10m or 2h, not '{text}'")
    return seconds


def _parse(hint: Any, text: str, option: str) -> Any:
    try:
        return parse_value(text, hint, option)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
