"""verdicts/TOOL.json: another verifier's answers for the examples of a run, beside its record. Imports no torch.

`holds` is the tool's claim. Its counterexample counts as broken only if a forward pass confirmed it.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

from bench.core.errors import UserError
from bench.core.files import sha256, write_atomically
from bench.core.record_files import RECORD
from bench.core.registry import one_line

VERDICTS = "verdicts"
Said = Literal["holds", "broken", "broken, not confirmed", "unknown"]


class ToolVerdicts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """said: the answer for each test example. contradicted: examples with a wrong answer, and the evidence against it.

    refuted: examples that the run certified, but the tool broke by a counterexample that a forward pass confirmed.
    """

    by: str
    record: str  # SHA-256 of record.json
    results: str  # SHA-256 of the tool's file
    said: dict[int, Said]
    contradicted: dict[int, str]
    refuted: list[int]

    def as_text(self) -> str:
        """One line for the verdicts, and one for each contradiction."""
        counts: Counter[str] = Counter(self.said.values())
        order = ("holds", "broken", "broken, not confirmed", "unknown")
        names = {"holds": "holds (its claim)", "broken": "broken (confirmed)"}
        parts = ", ".join(f"{counts[key]} {names.get(key, key)}" for key in order if counts[key])
        lines = [f"{self.by}: {parts}"]
        lines += [f"  CONTRADICTED: test example {i}: {why}" for i, why in sorted(self.contradicted.items())]
        lines += [f"  CERTIFICATE REFUTED: test example {i} has a confirmed counterexample" for i in self.refuted]
        return "\n".join(lines)


def write_verdicts(folder: Path, verdicts: ToolVerdicts) -> Path:
    """Store the verdicts of a tool on the run in `folder`, in place of earlier ones of the same tool."""
    (folder / VERDICTS).mkdir(exist_ok=True)
    path = folder / VERDICTS / f"{verdicts.by}.json"
    write_atomically(path, msgspec.json.format(msgspec.json.encode(verdicts), indent=1) + b"\n")
    return path


def read_verdicts(folder: Path) -> list[ToolVerdicts]:
    """Read the verdicts of all tools on the run in `folder`; verdicts on another record are left out."""
    found = []
    for path in sorted((folder / VERDICTS).glob("*.json")):
        try:
            verdicts = msgspec.json.decode(path.read_bytes(), type=ToolVerdicts)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} holds no verdicts: {one_line(error)}; delete it and import them again") from error
        if verdicts.record == sha256(folder / RECORD):
            found.append(verdicts)
    return found
