"""checked.json beside a published record: the results that the verification of a run derived.

`bench submit` writes it, and its `--check` derives it once more and compares. A board counts only what is listed here:
the attack columns that ran again, and the certificates that were checked. Older entries, from before there was such a
file, say `not checked`.
"""

from pathlib import Path
from typing import TypeVar

import msgspec

from bench.core import sealed_json
from bench.core.errors import UserError
from bench.core.files import write_atomically

CHECKED, REPRODUCED = "checked.json", "reproduced.json"
FileT = TypeVar("FileT")


class RepeatedAttack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A repeated attack of the record: the number of its robust examples attacked; `fell`: those that it broke."""

    attacked: int
    fell: list[int]


class Checked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The derived results for the record whose table has this hash.

    attack, seed: of the second attack on all examples that are claimed robust. columns: by spec. proven: certified
    examples whose proofs hold; again: those without a proof that were certified again within the checker's work limit;
    solver: certified by a solver that gives no proof. Other certificates do not count. fingerprint: of the network's
    outputs (bench/verify/fingerprint.py). reason: why a seed is far from the others of its entry.
    """

    table: str
    attack: str
    seed: int
    columns: dict[str, RepeatedAttack]
    proven: list[int]
    again: list[int]
    solver: list[int]
    fingerprint: list[float]
    reason: str | None = None


class Reproduction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """reproduced.json of an entry: who trained its recipe again, with which seeds, and when.

    Only maintainers of a board write it. An entry without it has no rank as a recipe, because only its authors know
    what its weights were trained on.
    """

    by: str
    seeds: list[int]
    finished: str


def read_reproduction(entry: Path) -> Reproduction | None:
    """Read the file of a published entry; None if there is none. UserError if it is malformed."""
    return _read(entry / REPRODUCED, Reproduction, "does not say who trained the entry again", digest=False)


def write_reproduction(entry: Path, reproduction: Reproduction) -> Path:
    write_atomically(entry / REPRODUCED, sealed_json.encode(reproduction))
    return entry / REPRODUCED


def read_checked(folder: Path) -> Checked | None:
    """Read the file of a published seed; None if there is none. UserError if it is malformed."""
    return _read(folder / CHECKED, Checked, "is not what a verification derived", digest=True)


def write_checked(folder: Path, checked: Checked) -> None:
    write_atomically(folder / CHECKED, sealed_json.encode(checked))


def _read(path: Path, kind: type[FileT], problem: str, *, digest: bool) -> FileT | None:
    """Read a file; None if it does not exist, UserError if it is malformed. digest: whether it must have one."""
    try:
        return sealed_json.decode(path.read_bytes(), kind, required=digest)
    except FileNotFoundError:
        return None
    except (UserError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} {problem}: {error}") from error
