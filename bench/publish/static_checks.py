"""Checks of a submission that need neither its model nor its data set: files, names, hashes, the record's numbers.

All files of a run, its record, and the description of an entry or a contest are untrusted. Nothing is imported,
executed or written. Every failure is a UserError of one line. The checks that need the model and the data set follow in
`bench verify` (bench/publish/submit.py).
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
from safetensors import safe_open

from bench.core.bounded_text import check_safetensors_header
from bench.core.config import get_suite
from bench.core.errors import UserError
from bench.core.example_table import CORRUPTED, PREFIXES, SEVERITIES, TYPES, Table
from bench.core.files import read_arrays
from bench.core.folders import visible_folders
from bench.core.record_checks import check_record
from bench.core.record_files import CONFIG, LOG, NETWORK, PROOFS, RECORD, TABLE, WEIGHTS, WITNESSES, read_record
from bench.core.records import Artifact, Record
from bench.core.verdict_files import VERDICTS
from bench.core.verification import VERIFICATION
from bench.publish.board_rules import check_board
from bench.publish.published_seed import PUBLISHED, published_files
from bench.publish.untrusted_files import (
    MIB,
    check_file,
    check_npz,
    check_text,
    check_url,
    errors_as_one_line,
    read_json,
    walk_json,
)
from bench.training.histories import LOSSES
from leaderboard.published_results import (
    ABOUT,
    REPORTED,
    About,
    Contest,
    check_name,
    read_about,
    read_contest,
    suite_folder,
)
from leaderboard.publishing import is_published
from leaderboard.verification_files import CHECKED

ARTIFACTS = {"weights": WEIGHTS, "examples": TABLE, "witnesses": WITNESSES, "proofs": PROOFS, "network": NETWORK}
OPTIONAL = {"proofs", "network"}  # a record has both or none
MAX_BYTES = {
    RECORD: MIB, CONFIG: MIB, LOG: 16 * MIB, TABLE: 16 * MIB, WITNESSES: 1024 * MIB,
    WEIGHTS: 4096 * MIB, VERIFICATION: MIB, PROOFS: 1024 * MIB, NETWORK: 64 * MIB,
}  # fmt: skip
NOT_PUBLISHED = {LOSSES, VERDICTS}  # what `--set keep_losses=true` and `bench import-verdicts` add to a run folder
MAX_ABOUT, MAX_CONTEST = 64 * 1024, MIB
MAX_LENGTHS = {"title": 200, "paper": 500, "licence": 100, "authors": 4000, "url": 1000, "code": 1000, "note": 4000}
SPEC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=:/-]{0,299}")
COMMAND = re.compile(r"bench (run|eval)( [A-Za-z0-9_@%+=:,./-]+)*")  # users copy it into a shell
COLUMNS = (*PREFIXES, "decided_by/")  # decided_by/SPEC: the stage of a staged attack
ANY_NUMBERS = ("config", "provenance", "sanity")  # parts of a record that may have negative numbers


def check_submission(folder: Path, results: Path, entry: str) -> Record:
    """Run all static checks, and return the record of a run that may become a seed of results/SUITE/ENTRY."""
    with errors_as_one_line(f"submission {folder}"):
        _check_files(folder)
        record = read_record(folder)
        _check_signs(record)
        _check_names(record)
        check_board(record, get_suite(record.suite or ""))
        _check_artifacts(folder, record)
        _check_claims(folder, record)
        _check_entry(folder, results, record, entry)
    return record


def check_about(about: About) -> None:
    """Check that the texts of an entry are present, short, and in Latin letters."""
    with errors_as_one_line(ABOUT):
        for key, max_length in MAX_LENGTHS.items():
            check_text(getattr(about, key) or "", key, max_length, "ASCII and Latin letters")
        for key in ("title", "paper", "licence"):
            if not getattr(about, key).strip():
                raise UserError(f"{key} is empty; an entry names its title, paper and licence")
        for address in (about.url, about.code):
            if address is not None:
                check_url(address)


def read_submitted_about(path: Path) -> About:
    """Read and check the about.toml of a submitted entry."""
    with errors_as_one_line(str(path)):
        check_file(path, MAX_ABOUT)
        about = read_about(path)
    check_about(about)
    return about


def read_submitted_contest(path: Path) -> Contest:
    """Read a contest file, and check that its witnesses can be downloaded and checked again."""
    with errors_as_one_line(str(path)):
        read_json(path, MAX_CONTEST)
        contest = read_contest(path)
        check_author(contest.by)
        check_artifact("witnesses", contest.witnesses)
        if path.name != f"{contest.witnesses.sha256[:12]}.json":
            raise UserError(f"{path.name} is not named after its witnesses, {contest.witnesses.sha256[:12]}")
        if contest.broken != sorted(set(contest.broken)) or min(contest.broken, default=-1) < 0:
            raise UserError(f"{path.name} must list the broken test examples, each once and in order")
    return contest


def check_author(name: str) -> None:
    """Check the name of the author of a contest."""
    if not check_text(name, "the author's name", 100).strip():
        raise UserError("a contest names its author; give --by NAME")


def check_artifact(name: str, file: Artifact) -> None:
    """Check that a file has a valid hash and size, and lies in the run folder or at an https address."""
    if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        raise UserError(f"the hash of the {name} is not a SHA-256; it must have 64 hexadecimal digits")
    max_bytes = MAX_BYTES[ARTIFACTS[name]]
    if not 0 < file.bytes <= max_bytes:
        raise UserError(f"the {name} have {file.bytes} bytes by the record; 1 to {max_bytes} are allowed")
    if file.path not in (None, ARTIFACTS[name]):
        raise UserError(f"the path of the {name} is '{file.path}'; it must be {ARTIFACTS[name]}, beside the record")
    if file.url is not None:
        check_url(file.url)


def check_witness_file(path: Path) -> None:
    if missing := {"index", "x_adv"} - check_npz(path, MAX_BYTES[WITNESSES]).keys():
        raise UserError(f"{path.name} has no array '{min(missing)}'; witnesses are 'index' and 'x_adv'")


def check_witness_number(path: Path, image: tuple[int, ...], most: int) -> None:
    """UserError if a file of witnesses unpacks to more than `most` of these images."""
    shape = check_npz(path, MAX_BYTES[WITNESSES])["x_adv"]
    if math.prod(shape) > most * math.prod(image):
        raise UserError(f"'x_adv' has the shape {shape}; at most {most} witnesses of the shape {image} are read")


def check_weights_file(path: Path) -> None:
    """Check a .safetensors file; the library checks that its header is valid and that its tensors fill the file."""
    check_file(path, MAX_BYTES[WEIGHTS])
    with errors_as_one_line(path.name):
        check_safetensors_header(path)
    with errors_as_one_line(path.name), safe_open(path, framework="np"):
        pass


def check_file_names(folder: Path) -> dict[str, int]:
    """Check that a run's files are regular and small enough, without opening them; return name -> largest size.

    The files of a run folder that are not published are left out.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a finished run")
    names = sorted(path.name for path in folder.iterdir())
    published = published_files(folder) if CHECKED in names else {}  # read_published_seed reads these
    left_out = PUBLISHED if published else NOT_PUBLISHED
    names = [name for name in names if name not in left_out]
    for name in names:
        if name not in MAX_BYTES:
            raise UserError(f"{name!a} does not belong to a run; a submission holds only {', '.join(MAX_BYTES)}")
        check_file(folder / name, MAX_BYTES[name])
    for name in (RECORD, TABLE):
        if name not in names:
            raise UserError(f"{folder} has no {name}; a finished run folder has one")
    return {name: MAX_BYTES[name] for name in names} | published


def check_whole(folders: Sequence[Path]) -> None:
    """Check that no seed beside these runs lacks a record, such as the lone table of an unfinished run."""
    for home in dict.fromkeys(folder.parent for folder in folders):
        for seed in visible_folders(home):
            if seed.name.isdecimal() and not (seed / RECORD).exists():
                raise UserError(f"{seed} has no {RECORD}; finish the run or delete the folder, then submit all seeds")


def is_published_form(folder: Path, record: Record) -> bool:
    """Whether the folder is a run that `bench submit` has published, as in a pull request, and not a run folder."""
    return record.artifacts["weights"].path is None or not (folder / CONFIG).exists()


def _check_files(folder: Path) -> None:
    """Check that there are only the files of a run. Sizes are checked before any file is opened."""
    names = check_file_names(folder)
    for name in {RECORD, CONFIG, VERIFICATION}.intersection(names):
        read_json(folder / name, MAX_BYTES[name])
    if NETWORK in names:  # the mask of a pruned layer is a string
        read_json(folder / NETWORK, MAX_BYTES[NETWORK], MAX_BYTES[NETWORK])
    for name in {TABLE, PROOFS}.intersection(names):
        check_npz(folder / name, MAX_BYTES[name])
    if WITNESSES in names:
        check_witness_file(folder / WITNESSES)
    if WEIGHTS in names:
        check_weights_file(folder / WEIGHTS)


def _check_signs(record: Record) -> None:
    """Check that no number is negative. The table implies that fractions are at most 1."""
    for place, value in walk_json(msgspec.to_builtins(record)):
        name = place.strip("/").replace("/", ".")
        if isinstance(value, int | float) and value < 0 and name.partition(".")[0] not in ANY_NUMBERS:
            raise UserError(f"the record's {name} is {value}; it must not be negative")


def _check_names(record: Record) -> None:
    """Check the form of all names that are shown on the page or looked up in a registry."""
    if record.seed >= 2**31:
        raise UserError(f"the seed is {record.seed}; it must be 0 to {2**31 - 1}")
    if record.suite is None:
        raise UserError("the run does not belong to a suite; run it with a suite's data set, norm and eps")
    check_name(record.suite, "suite")
    stages = {} if record.bracket is None else record.bracket.stages | record.bracket.skipped
    methods = (*record.attacks, *record.certifiers, *record.corruptions, *stages)
    for spec in (record.defense, record.dataset, record.model, *methods):
        if not SPEC.fullmatch(spec):
            raise UserError(f"{spec[:100]!a} is not a valid spec; write a name and its options, as name:option=value")
    command = record.provenance.get("command")
    if command is not None and not (isinstance(command, str) and COMMAND.fullmatch(command)):
        raise UserError(f"the command in the record's provenance, {str(command)[:100]!a}, is not a plain `bench run`")


def _check_artifacts(folder: Path, record: Record) -> None:
    """Check that each file is in the folder or published elsewhere. `bench verify` checks the hashes."""
    if set(ARTIFACTS) - set(record.artifacts) not in (set(), OPTIONAL) or not record.artifacts.keys() <= set(ARTIFACTS):
        required = ", ".join(name for name in ARTIFACTS if name not in OPTIONAL)
        both = " and ".join(sorted(OPTIONAL))
        raise UserError(f"the record's artifacts must be {required}, both or none of {both}, and nothing else")
    for name, file in record.artifacts.items():
        check_artifact(name, file)
        path = folder / ARTIFACTS[name]
        if (file.path is not None) != path.exists():
            problem = "is missing" if file.path is not None else "exists, but has no path in the record"
            raise UserError(f"{path.name} {problem}; the record must give the path or the url of each file")


def _check_claims(folder: Path, record: Record) -> None:
    """Check that the record's numbers follow from its table, and that the table has only valid columns."""
    table: Table = read_arrays(folder / TABLE)
    specs = {*record.attacks, *record.certifiers}
    corrupted = {f"{CORRUPTED}{name}:severity={severity}" for name in record.corruptions for severity in SEVERITIES}
    for key, column in table.items():
        prefix, slash, spec = key.partition("/")
        known = key in TYPES or key in corrupted or (f"{prefix}{slash}" in COLUMNS and spec in specs)
        if not known:
            raise UserError(
                f"column '{key}' of {TABLE} does not belong to an attack, certifier or corruption of the record"
            )
        if prefix in ("passes", "distance", "label", "prediction") and bool((column < 0).any()):
            raise UserError(f"column '{key}' of {TABLE} has negative numbers")
    check_record(record, table)


def _check_entry(folder: Path, results: Path, record: Record, entry: str) -> None:
    """Check that the seed is not already published with other content.

    Files that a pull request adds must be in the folder SUITE/ENTRY/SEED.
    """
    home = suite_folder(results, str(record.suite)) / check_name(entry, "entry")
    place = (home / str(record.seed)).parts[-3:]
    if is_published_form(folder, record) and folder.resolve().parts[-3:] != place:
        raise UserError(f"{folder} is published as {'/'.join(place)}; it must be in a folder of that name")
    if (home / REPORTED).exists():
        raise UserError(f"entry '{entry}' is one that RobustBench reports; choose another name")
    is_published(home, record)  # UserError if the seed is published otherwise
