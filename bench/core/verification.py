"""verification.json: the findings of the last `bench verify` of a run, beside its record. Imports no torch."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.core import sealed_json
from bench.core.errors import UserError
from bench.core.files import sha256, write_atomically
from bench.core.record_files import RECORD
from bench.core.record_verdict import Finding, with_findings
from bench.core.records import Record
from bench.core.registry import one_line

VERIFICATION = "verification.json"


class StoredFinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    outcome: str
    evidence: str


class Verification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The findings on the record with this hash, and how the examples were attacked again."""

    record: str  # SHA-256 of record.json; the findings apply to no other record
    attack: str
    sample: int | None  # None: all, or a large sample if there are very many
    seed: int
    findings: list[StoredFinding]


def write_verification(
    folder: Path, findings: Iterable[Finding], *, attack: str, sample: int | None, seed: int
) -> None:
    """Store the findings of a verification of the run in `folder`."""
    stored = [StoredFinding(finding.name, finding.outcome, finding.evidence) for finding in findings]
    verification = Verification(sha256(folder / RECORD), attack, sample, seed, stored)
    write_atomically(folder / VERIFICATION, sealed_json.encode(verification))


def verified(record: Record, folder: Path) -> Record:
    """Return the record with its verdict updated by its verification, if the folder holds one of this record."""
    path = folder / VERIFICATION
    try:
        found = sealed_json.decode(path.read_bytes(), Verification, required=False)
    except FileNotFoundError:
        return record
    except (UserError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a verification: {one_line(error)}; delete it and verify again") from error
    return with_findings(record, found.findings) if found.record == sha256(folder / RECORD) else record
