"""Checks that the command in a record produces its config.

The command is untrusted. It is parsed and planned, but never run by a shell, and it imports only files that the user
has named.
"""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.core.errors import UserError
from bench.core.record_files import WEIGHTS
from bench.core.records import Record
from bench.core.spec_text import split_specs
from bench.runs.hub import PREFIX
from bench.runs.plan import make_plan
from bench.runs.request import Request
from bench.verify.inputs import Settings
from bench.verify.report import Finding

NAME = "command"
OF_FILES = ("checkpoint", "state_dict", "code")  # settings that depend on files outside the run folder
INTEGERS = ("budget", "n-examples", "eval-batch", "threads")
TEXTS = ("defense", "checkpoint", "suite", "dataset", "model", "norm", "eps", "attacks", "certifiers", "corruptions")


def check_command(record: Record, folder: Path, settings: Settings) -> Finding:
    """Plan the command again with the run's data and weights, and check that it gives the config of the record."""
    text = record.provenance.get("command")
    if not isinstance(text, str):
        return Finding(NAME, "failed", "the record does not say by which command it was made")
    try:
        request = read_command(text)
        if request.command_line(record.seed) != text:
            raise UserError(f"a run of seed {record.seed} writes `{request.command_line(record.seed)[:200]}`")
        config = make_plan(_on_the_run(request, record, folder, settings)).config.as_json()
    except UserError as error:
        return Finding(NAME, "failed", f"`{text[:200]}` does not make this run: {error}")
    for key in dict.fromkeys([*record.config, *config]):
        if key not in OF_FILES and record.config.get(key) != config.get(key):
            ours, theirs = str(record.config.get(key))[:80], str(config.get(key))[:80]
            return Finding(NAME, "failed", f"`{text[:200]}` gives {key} {theirs}, the config has {ours}")
    return Finding(NAME, "passed", "it gives the config of the record")


def read_command(text: str) -> Request:
    """Parse a command: the inverse of Request.command_line, except for the seed. UserError for anything else."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"it is not a valid shell command ({error})") from error
    if words[:2] not in (["bench", "run"], ["bench", "eval"]):
        raise UserError("it is neither `bench run` nor `bench eval`")
    given: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    code: dict[str, list[Path]] = {"plugin": [], "trust-code": []}
    for option, value in _options(words[2:]):
        if option == "set":
            key, _, overrides[key] = value.partition("=")
        elif option in code:
            code[option].append(Path(value))
        elif option in given:
            raise UserError(f"--{option} is given twice")
        else:
            given[option] = value
    fields: dict[str, Any] = {key: given.pop(key) for key in TEXTS if key in given}
    fields["box"] = "box" not in given
    try:
        if "eps" in fields:
            fields["eps"] = tuple(float(each) for each in fields["eps"].split(","))
        fields |= {key.replace("-", "_"): int(given.pop(key)) for key in INTEGERS if key in given}
        if "time-limit" in given:
            fields["time_limit"] = float(given.pop("time-limit").removesuffix("s"))
    except ValueError as error:
        raise UserError(f"it has a number that is none ({error})") from error
    if "attacks" in fields:
        fields["attacks"] = [] if fields["attacks"] == "none" else split_specs(fields["attacks"])
    if "corruptions" in fields:
        fields["corruptions"] = [] if fields["corruptions"] == "none" else fields["corruptions"].split(",")
    if "certifiers" in fields:
        fields["certifiers"] = split_specs(fields["certifiers"])
    fields["state_dict"] = given.pop("state-dict", None)
    if "checkpoint" in fields:
        address = str(fields["checkpoint"])
        fields |= {"checkpoint": Path(address), "origin": address if address.startswith(PREFIX) else None}
    if given.pop("box", "none") != "none":
        raise UserError("--box takes none only")
    if unknown := given.keys() - {"bracket", "seeds"}:
        raise UserError(f"--{min(unknown)} is no option that decides a result")
    return Request(**fields, overrides=overrides, plugins=code["plugin"], trusted=code["trust-code"])


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the options without their dashes, each with its value; "" for --bracket."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise UserError(f"'{word[:40]}' is no option")
        yield word[2:], "" if word == "--bracket" else next(rest, "")


def _on_the_run(request: Request, record: Record, folder: Path, settings: Settings) -> Request:
    """Point the request to the run's data and weights; UserError if it names a file that the record does not."""
    specs = (request.dataset, request.model, *(request.attacks or ()), *request.certifiers)
    known = {record.dataset, record.model, *record.attacks, *record.certifiers}
    for spec in specs:
        if spec is not None and spec not in known and (".py" in spec or ".npz" in spec or "from=" in spec):
            raise UserError(f"'{spec[:80]}' names a file that the record does not name")
    trusted = {path.name: path for path in settings.trusted}
    if missing := [path.name for path in (*request.plugins, *request.trusted) if path.name not in trusted]:
        raise UserError(f"it imports {missing[0][:80]}; read it, then name it with --trust-code")
    plugins = [trusted[path.name] for path in request.plugins]
    suite = request.suite
    if suite is not None and suite.endswith(".toml"):  # the board has it by its name (--suites); its file is not read
        suite = Path(suite).stem
        if suite != record.suite:
            raise UserError(f"'{suite[:80]}' is not the suite of the record")
    checkpoint = None if request.checkpoint is None else folder / WEIGHTS
    model = request.model if checkpoint is None else None  # the header of the weights names it
    return replace(
        request,
        suite=suite,
        plugins=plugins,
        trusted=list(settings.trusted),
        checkpoint=checkpoint,
        state_dict=None,  # the run's weights are already those of this key
        model=model,
        data_dir=settings.data_dir,
        device="cpu",
        threads=1,
    )
