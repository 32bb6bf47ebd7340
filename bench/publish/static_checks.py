"""The static checks of a submission: a run's files, and what they claim, before any of it is used.

Nothing of it is imported or executed, nothing is written; whatever is wrong is a UserError of one line. What the
checks here leave open, `bench verify` answers with the model and the data (bench/publish/submit.py).
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from bench.core.config import Suite, get_suite
from bench.core.errors import UserError
from bench.core.example_table import PREFIXES, TYPES, Table
from bench.core.files import read_arrays, sha256
from bench.core.record_files import RECORD, TABLE, WITNESSES, read_record
from bench.core.records import Artifact, Record
from bench.publish.untrusted_files import (
    MIB,
    check_arrays,
    check_ascii,
    check_file,
    check_tensors,
    one_plain_line,
    read_json,
)
from leaderboard.store import ABOUT, REPORTED, About, Contest, check_name, read_about

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
ARTIFACTS = {"weights": WEIGHTS, "examples": TABLE, "witnesses": WITNESSES}
LARGEST = {
    RECORD: MIB, CONFIG: MIB, "training.json": MIB, "log.jsonl": 16 * MIB, TABLE: 64 * MIB, WITNESSES: 1024 * MIB,
    WEIGHTS: 4096 * MIB,
}  # fmt: skip
ABOUT_LARGEST, CONTEST_LARGEST = 64 * 1024, MIB
LENGTHS = {"title": 200, "paper": 500, "licence": 100, "authors": 4000, "url": 1000, "note": 4000}
DEFENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
SPEC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=:/-]{0,299}")
COMMAND = re.compile(r"bench (run|eval)( [A-Za-z0-9_@%+=:,./-]+)*")  # people copy it into a shell
LAST = "square"  # the last stage of a bracket's attacks that every open example goes through
COLUMNS = (*PREFIXES, "decided_by/")  # of an attack in stages: which stage
SHARES = ("acc", "robust_acc", "certified_acc", "ci95", "certified_ci95", "robust_ci95")
FREE = ("config", "provenance", "sanity")  # parts of a record whose numbers may be negative


def check_submission(folder: Path, results: Path, entry: str) -> Record:
    """The record of a run that may become a seed of results/SUITE/ENTRY, after every check that needs no model."""
    with one_plain_line(f"submission {folder}"):
        _check_files(folder)
        _check_plain(read_json(folder / RECORD, LARGEST[RECORD]))
        record = read_record(folder)
        _check_names(record)
        _check_board(record, get_suite(record.suite or ""))
        _check_artifacts(folder, record)
        _check_claims(folder, record)
        _check_place(results, record, entry)
    return record


def check_about(about: About) -> None:
    """Is what an entry says of itself there, short, and text that shows what it is?"""
    with one_plain_line(ABOUT):
        for key, longest in LENGTHS.items():
            value = getattr(about, key)
            if value is None:
                continue
            if len(value) > longest:
                raise UserError(f"{key} has {len(value)} characters; at most {longest} are allowed")
            strange = next((c for c in value if not (" " <= c <= "~" or _latin(c))), None)
            if strange is not None:
                raise UserError(f"{key} holds the character U+{ord(strange):04X}; write ASCII and Latin letters only")
        for key in ("title", "paper", "licence"):
            if not getattr(about, key).strip():
                raise UserError(f"{key} is empty; an entry names its title, paper and licence")
        if about.url is not None:
            check_url(about.url)


def _latin(character: str) -> bool:
    """A letter of a name such as Cisse's or Moller's, but none of another alphabet that looks like ours."""
    return character.isalpha() and unicodedata.name(character, "").startswith("LATIN ")


def read_submitted_about(path: Path) -> About:
    """The about.toml of a submitted entry."""
    with one_plain_line(str(path)):
        check_file(path, ABOUT_LARGEST)
        about = read_about(path)
    check_about(about)
    return about


def read_submitted_contest(path: Path) -> Contest:
    """A contest's file, whose witnesses anybody can fetch and judge again."""
    with one_plain_line(str(path)):
        read_json(path, CONTEST_LARGEST)
        contest = msgspec.json.decode(path.read_bytes(), type=Contest)
        check_by(contest.by)
        check_artifact("witnesses", contest.witnesses)
        if path.name != f"{contest.witnesses.sha256[:12]}.json":
            raise UserError(f"{path.name} is not named after its witnesses, {contest.witnesses.sha256[:12]}")
        if contest.broken != sorted(set(contest.broken)) or min(contest.broken, default=-1) < 0:
            raise UserError(f"{path.name} must list the broken test examples, each once and in order")
    return contest


def check_by(by: str) -> str:
    """The name of who contests."""
    if not check_ascii(by, "the name of who contests", 100).strip():
        raise UserError("a contest names who brings it; give --by NAME")
    return by


def check_url(url: str) -> str:
    """An address that anybody can fetch: https, a host, no password."""
    parts = urlsplit(check_ascii(url, "a url", 1000))
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or re.search(r"[\s<>\"'`\\]", url):
        raise UserError(f"'{url[:100]}' is no address that is fetched; it must be https://HOST/...")
    return url


def check_artifact(name: str, file: Artifact) -> None:
    """Does it say which file it is, how large, and nowhere but in the run folder or at an https address?"""
    if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        raise UserError(f"the hash of the {name} is no SHA-256 of 64 hexadecimal digits")
    if not 0 < file.bytes <= LARGEST[ARTIFACTS[name]]:
        raise UserError(f"the {name} have {file.bytes} bytes by the record; 1 to {LARGEST[ARTIFACTS[name]]} are read")
    if file.path not in (None, ARTIFACTS[name]):
        raise UserError(f"the path of the {name} is '{file.path}'; it must be {ARTIFACTS[name]}, beside the record")
    if file.url is not None:
        check_url(file.url)


def check_witnesses(path: Path) -> None:
    """Are the witnesses plain arrays of a size that is read?"""
    found = check_arrays(path, LARGEST[WITNESSES])
    missing = {"index", "x_adv"} - set(found)
    if missing:
        raise UserError(f"{path.name} has no array '{min(missing)}'; witnesses are 'index' and 'x_adv'")


def check_weights(path: Path) -> None:
    check_tensors(path, LARGEST[WEIGHTS])


def _check_files(folder: Path) -> None:
    """Only the files of a run, each plain and none huge; sizes before anything is opened."""
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a finished run")
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if name not in LARGEST:
            raise UserError(f"{name!a} is no file of a run; a submission holds {', '.join(LARGEST)} and nothing else")
        check_file(folder / name, LARGEST[name])
    for name in (RECORD, TABLE):
        if name not in names:
            raise UserError(f"{folder} has no {name}; a finished run folder has one")
    if CONFIG in names:
        read_json(folder / CONFIG, LARGEST[CONFIG])
    check_arrays(folder / TABLE, LARGEST[TABLE])
    if WITNESSES in names:
        check_witnesses(folder / WITNESSES)
    if WEIGHTS in names:
        check_weights(folder / WEIGHTS)


def _check_plain(record: Any) -> None:
    """No number of a record is negative, and no share is above 1; checked before the schema, for a clear line."""
    if not isinstance(record, dict):
        raise UserError(f"{RECORD} is not a record: it holds no object")
    todo = [(key, value) for key, value in record.items() if key not in FREE]
    while todo:
        where, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{where}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [(where, inner) for inner in value]
        elif isinstance(value, int | float):
            most = 1.0 if where.rpartition(".")[2] in SHARES else float("inf")
            if not 0 <= value <= most:
                allowed = "a fraction, from 0 to 1" if most == 1 else "not negative"
                raise UserError(f"the record's {where} is {value}; it must be {allowed}")


def _check_names(record: Record) -> None:
    """Are all names that a page shows, or that anything is looked up by, such as our own?"""
    if not 0 <= record.seed < 2**31:
        raise UserError(f"seed {record.seed} is none; seeds are 0 to {2**31 - 1}")
    if record.suite is None:
        raise UserError("the run is of no suite; run it with a suite's data, norm and eps")
    check_name(record.suite, "suite")
    if not DEFENSE.fullmatch(record.defense):
        raise UserError(f"defense {record.defense!a} is no name; use letters, digits, '.', '_', '+', '-'")
    stages = {} if record.bracket is None else record.bracket.stages | record.bracket.skipped
    for spec in (record.dataset, record.model, *record.attacks, *record.certifiers, *stages):
        if not SPEC.fullmatch(spec):
            raise UserError(f"{spec[:100]!a} is no spec; write a name and its options, as name:option=value")
    command = record.provenance.get("command")
    if command is not None and not (isinstance(command, str) and COMMAND.fullmatch(command)):
        raise UserError(f"the command in the record's provenance, {str(command)[:100]!a}, is none of `bench run`")


def _check_board(record: Record, suite: Suite) -> None:
    """Is it a run of the suite, on enough examples, under an attack that the board believes?"""
    for what, found, wanted in (
        ("data set", record.dataset, suite.dataset),
        ("norm", record.threat.norm, suite.norm),
        ("eps", record.threat.eps, suite.eps),
        ("eval_batch", record.config.get("eval_batch"), suite.eval_batch),
    ):
        if found != wanted:
            unit = " (of images in [0, 1])" if what == "eps" else ""
            raise UserError(f"the run has the {what} {found}{unit}; suite {suite.name} has {wanted}")
    needed = suite.board_examples
    if needed is not None and record.n_examples < needed:
        raise UserError(f"the run is on {record.n_examples} examples; the board of {suite.name} needs {needed}")
    bracket = record.bracket
    tried = 0 if bracket is None or LAST not in bracket.stages else bracket.stages[LAST].tried
    if not set(record.attacks) & set(suite.board_attacks) and (bracket is None or tried < bracket.open):
        raise UserError(
            f"the run has none of the attacks of the board, {', '.join(suite.board_attacks)}; give one to --attacks"
        )
    if record.sanity.verdict not in ("clean", "suspect"):
        reasons = "; ".join(record.sanity.reasons) or "no reason given"
        raise UserError(f"the sanity verdict is {record.sanity.verdict}, so its accuracy is no bound: {reasons}")


def _check_artifacts(folder: Path, record: Record) -> None:
    if set(record.artifacts) != set(ARTIFACTS):
        raise UserError(f"the record must name its {', '.join(ARTIFACTS)}, and nothing else, as artifacts")
    for name, file in record.artifacts.items():
        check_artifact(name, file)
        path = folder / ARTIFACTS[name]
        if (file.path is not None) != path.exists():
            there = "is not here" if file.path is not None else "is here, and no path in the record"
            raise UserError(f"{path.name} {there}; the record names each file where it is")
        if file.path is not None and (path.stat().st_size, sha256(path)) != (file.bytes, file.sha256):
            raise UserError(f"{path.name} is not the file whose hash and size the record names")


def _check_claims(folder: Path, record: Record) -> None:
    """Do the record's numbers follow from its table, and does the table say no more than a table can?"""
    table: Table = read_arrays(folder / TABLE)
    specs = {*record.attacks, *record.certifiers}
    for key, column in table.items():
        prefix, slash, spec = key.partition("/")
        known = key in (*TYPES, "status", "decided_by") or (f"{prefix}{slash}" in COLUMNS and spec in specs)
        if not known:
            raise UserError(f"column '{key}' of {TABLE} is of nothing that the record names")
        if prefix in ("passes", "distance", "label", "prediction") and bool((column < 0).any()):
            raise UserError(f"column '{key}' of {TABLE} has negative numbers")
    check_record(record, table)
    if not np.array_equal(table["index"], np.arange(record.n_examples)):
        raise UserError(f"column 'index' of {TABLE} does not count the first examples of the test order")


def _check_place(results: Path, record: Record, entry: str) -> None:
    """Is there room for this seed, under a name that nobody takes for another entry's?"""
    home = results / str(record.suite) / check_name(entry, "entry")
    if (home / REPORTED).exists():
        raise UserError(f"entry '{entry}' is what RobustBench reports of somebody's; choose another name")
    if (home / str(record.seed)).exists():
        raise UserError(f"{home / str(record.seed)} is published already; a new recipe is a new entry, as {entry}-2")
    others = [path.name for path in home.parent.iterdir()] if home.parent.is_dir() else []
    for other in others:
        if other != entry and _looks(other) == _looks(entry):
            raise UserError(f"entry '{entry}' looks like '{other}', which is there already; choose another name")


def _looks(name: str) -> str:
    """What is left of a name for somebody who reads it in haste."""
    for seen, taken in (("rn", "m"), ("vv", "w"), ("0", "o"), ("1", "l"), ("_", "-"), (".", "-"), ("+", "-")):
        name = name.replace(seen, taken)
    return name
