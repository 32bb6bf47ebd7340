"""Reads the command in a record: how a run is made again, and which code files it needs. Imports no torch."""

import shlex
from collections.abc import Iterable
from itertools import pairwise

from bench.core.records import Artifact, Record

CODE_OPTIONS = ("--plugin", "--trust-code")


def command_of(record: Record) -> str:
    """The command that makes the run again; "" if the record has none that can be printed."""
    command = record.provenance.get("command")
    return command if isinstance(command, str) and command.isprintable() else ""


def code_files(record: Record) -> list[str]:
    """The code files that the run was given, as its command and its specs name them."""
    try:
        words = shlex.split(command_of(record))
    except ValueError:  # an unclosed quote; the record may come from anywhere
        words = []
    pairs = [word.split("=", 1) for word in words if word.startswith(tuple(f"{option}=" for option in CODE_OPTIONS))]
    pairs += [[a, b] for a, b in pairwise(words) if a in CODE_OPTIONS]
    specs = [record.dataset, record.model, *record.attacks, *record.certifiers]
    named = [*(path for _, path in pairs), *(spec.partition(":")[0] for spec in specs)]
    return list(dict.fromkeys(path for path in named if path.endswith(".py") and path.isprintable()))


def give_code(record: Record) -> str:
    """What to do if the code of a run is missing: `give --plugin mine.py`."""
    return "give " + " ".join(f"--plugin {shlex.quote(path)}" for path in code_files(record) or ["FILE"])


def absent_files(record: Record, names: Iterable[str]) -> str:
    """Say which of the record's files of these names are not in its folder, and how to get them; "" if all are there.

    A published seed may have files at an address, or none: then the record's command makes them again.
    """
    absent = {name: record.artifacts[name] for name in names if not _is_here(record.artifacts.get(name))}
    remote = [f"{name} at {file.url}" for name, file in absent.items() if file.url is not None]
    nowhere = [name for name, file in absent.items() if file.url is None]
    parts = []
    if remote:
        parts.append(f"published elsewhere: {', '.join(remote)} (download them and give a whole run folder)")
    if nowhere:
        again = f" (train it again: {command_of(record)})" if command_of(record) else ""
        parts.append(f"not published: {', '.join(nowhere)}{again}")
    return "; ".join(parts)


def _is_here(file: Artifact | None) -> bool:
    return file is None or file.path is not None
