"""argparse types, and a parser whose errors are one line."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from bench.core.errors import UserError
from bench.core.spec_text import split_specs
from bench.core.specs import parse_value

MAX_SEEDS = 1000  # of a range, against slips such as 0-40000
RENAMED = {"plugins": "trust-code", "maintainers": "maintainer"}  # attributes whose options have other names


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, with the nearest option or choice of this command."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the words, but refuse unknown options here, where the options of the command are known."""
        self._words = list(sys.argv[1:] if args is None else args)
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest

    def error(self, message: str) -> NoReturn:
        if re.match("unrecognized arguments|the following arguments are required", message):
            message = self._of_unknown_option() or message
        if choice := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            allowed = choice[3].replace("'", "")
            by_folded = {word.casefold(): word for word in allowed.split(", ")}
            nearest = difflib.get_close_matches(choice[2].casefold(), by_folded, n=1)
            hint = f"; did you mean '{by_folded[nearest[0]]}'?" if nearest else ""
            message = f"{choice[1]} takes {allowed}, not '{choice[2]}'{hint}"
        fail(f"{message}; see `{self.prog} --help`")

    def _of_unknown_option(self) -> str | None:
        """The message for the first word that looks like an option but is not one of this command; None without one."""
        options = self._option_string_actions
        for word in self._words[: self._words.index("--") if "--" in self._words else None]:
            name = word.partition("=")[0]
            if re.fullmatch("--[a-zA-Z].*", name) and not any(option.startswith(name) for option in options):
                nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.75)
                return f"unknown option {name}{f': did you mean {nearest[0]}?' if nearest else ''}"
        return None


class ShowVersion(argparse.Action):
    """Print the version of the installed distribution."""

    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"robust-bracket {version('robust-bracket')}")
        except PackageNotFoundError:
            print("robust-bracket, not installed (run from its source tree)")
        raise SystemExit(0)


def fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


# Types of options, for argparse. argparse does not handle UserError, so it reaches bench.cli.main.


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


def seed_list(option: str) -> Callable[[str], list[int]]:
    """A parser for `option`, seeds separated by commas; `0-4` are the seeds from 0 to 4."""

    def parse(text: str) -> list[int]:
        seeds: list[int] = []
        for word in text.split(","):
            ends = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", word.strip())
            low, high = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
            if not 0 <= high - low < MAX_SEEDS:
                raise UserError(
                    f"{option} takes whole numbers of at least 0, separated by commas, or ranges of them, as in 0,1,2 "
                    f"or 0-4, not '{text}'"
                )
            seeds += range(low, high + 1)
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise UserError(f"{option} {text} names seed {twice[0]} twice; give each seed once")
        return seeds

    return parse


def spec_list(option: str) -> Callable[[str], list[str]]:
    """Specs separated by commas; [] for `none`."""

    def parse(text: str) -> list[str]:
        specs = split_specs(text)
        if "" in specs:
            raise UserError(f"{option} '{text}' has an empty spec; separate specs by single commas, or write none")
        return [] if specs == ["none"] else specs

    return parse


def work(text: str) -> int:
    """The budget of a bracket."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise UserError(
            f"--budget takes a number of sub-problems for each example, such as 1000, not '{text}'; a limit of time is "
            "--time-limit 10m"
        )
    return int(text)


def duration(text: str) -> float:
    """`90s`, `10m` or `2h`, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = 0.0 if match is None else float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if not 0.001 <= seconds < 1e9:
        raise UserError(f"--time-limit takes a duration such as 90s, 10m or 2h, not '{text}'")
    return round(seconds, 3)  # rounded like the seconds of a record, which are compared with it


def task_of(args: argparse.Namespace, tasks: Mapping[str, Collection[str]], otherwise: Collection[str] = ()) -> str:
    """The task that an option of `tasks` selects; "" if none is given.

    tasks: option -> the options that it uses; without a task those of `otherwise` are used. UserError if two tasks are
    given, or an option of another task.
    """
    given = [task for task in tasks if _is_given(args, task)]
    if len(given) > 1:
        raise UserError(f"{_option(given[0])} and {_option(given[1])} are different tasks; give one of them")
    task = given[0] if given else ""
    used = tasks[task] if task else otherwise
    for other, names in tasks.items():
        for name in names:
            if name not in used and _is_given(args, name):
                wrong = f"is not for {_option(task)};" if task else f"is for {_option(other)}; give that too, or"
                raise UserError(f"{_option(name)} {wrong} leave it out")
    return task


def _is_given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    return value is not None and value is not False and value not in ("", [])


def _option(name: str) -> str:
    return f"--{RENAMED.get(name, name).replace('_', '-')}"
