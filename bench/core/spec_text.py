"""Specs as text: `name:option=value:...` split into its parts, without the registry. Imports no torch."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.core.errors import UserError


class SpecText(NamedTuple):
    """A spec split at its colons; the options are text, in the order in which they were given."""

    name: str  # for code in a file, FILE.py:FUNCTION
    options: dict[str, str]


def split_spec(text: str) -> SpecText:
    """`pgd:steps=40:restarts=5` -> `pgd` and {steps: 40, restarts: 5}; UserError if a part is not option=value.

    A colon before a slash or backslash belongs to a path: `transfer:from=C:\\runs\\a`.
    `pgd-50` is a name here: whether it is short for `pgd:steps=50` depends on the registry (see `split_steps`).
    """
    name, *parts = re.split(r":(?![\\/])", text)
    if name.endswith(".py") and parts:
        name = f"{name}:{parts.pop(0)}"
    return SpecText(name, split_options(parts, f"'{text}'"))


def files_of_code(specs: Iterable[str]) -> list[Path]:
    """The files of the specs of the form FILE.py:FUNCTION."""
    parts = [split_spec(text).name.rpartition(".py:") for text in specs]
    return [Path(f"{path}.py") for path, colon, _ in parts if colon]


def split_specs(text: str) -> list[str]:
    """Specs separated by commas. A spec in single quotes may contain commas: `pgd-10,'transfer:from=runs/a,b'`."""
    if "\n" in text or "\r" in text:
        raise UserError(f"the list {text!r} has a line break; separate its names by commas")
    (words,) = csv.reader([text], quotechar="'", skipinitialspace=True)
    return [word.strip() for word in words or [""]]


def list_of_specs(specs: str | Sequence[str]) -> list[str]:
    """Specs as a list, from a list or a text as for split_specs; UserError for anything else."""
    listed = split_specs(specs) if isinstance(specs, str) else list(specs)
    for spec in listed:
        if not isinstance(spec, str):
            raise UserError(f"a spec is text such as 'pgd:steps=40', not {type(spec).__name__}")
    return listed


def join_specs(specs: Iterable[str]) -> str:
    """The inverse of split_specs."""
    return ",".join(f"'{spec}'" if "," in spec else spec for spec in specs)


def split_options(parts: Sequence[str], source: str) -> dict[str, str]:
    """`option=value` words as a dict; UserError, which names their source, if one is malformed or given twice."""
    options: dict[str, str] = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if not equals or not option:
            raise UserError(f"{source}: '{part}' should be option=value, as in steps=40")
        if option in options:
            raise UserError(f"{source}: '{option}' is given twice; keep one")
        options[option] = value
    return options


def join_spec(name: str, options: Mapping[str, str]) -> str:
    """The inverse of split_spec."""
    return ":".join([name, *(f"{option}={value}" for option, value in options.items())])


def split_steps(name: str) -> tuple[str, int | None]:
    """`pgd-50` -> ("pgd", 50), and a name without a number at its end -> (name, None).

    Only meaningful for the name of a method that has the option `steps`: `wrn-34-10` is a model.
    """
    match = re.fullmatch(r"(.+)-(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)
