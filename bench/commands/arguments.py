"""What the words of the command line are: argparse types, and errors that are one line."""

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
    """argparse whose errors are one line, with the nearest word where one is unknown."""

    options: ClassVar[set[str]] = set()  # of all commands: an unknown option is reported by the topmost parser

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
            message = f"no option {unknown[1]}{_nearest(unknown[1], self.options)}"
        fail(f"{message}; see `{self.prog} --help`")


def _nearest(word: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def eps_list(text: str) -> tuple[float, ...]:
    """An argparse type: numbers with commas between, fractions such as 8/255 too."""
    return tuple(dict.fromkeys(_typed(float, word, "--eps") for word in text.split(",")))


def whole(what: str, least: int, most: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value: int = _typed(int, text, what)
        if value < least or (most is not None and value > most):
            allowed = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{what} must be {allowed}, not {value}")
        return value

    return parse


def seed_list(text: str) -> list[int]:
    found: list[int] = list(dict.fromkeys(_typed(tuple[int, ...], text, "--seeds")))
    if not found or min(found) < 0:
        raise argparse.ArgumentTypeError(f"--seeds takes whole numbers such as 0,1,2, not '{text}'")
    return found


def duration(text: str) -> float:
    """An argparse type: seconds from `90s`, `10m` or `2h`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = 0.0 if found is None else float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"--budget takes a duration such as 90s, 10m or 2h, not '{text}'")
    return seconds


def _typed(hint: Any, text: str, what: str) -> Any:
    try:
        return parse_value(text, hint, what)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
