"""Checks that a run's code files are executed only if the user named them."""

from collections.abc import Mapping
from pathlib import Path

from bench.core.errors import UserError
from bench.core.records import Record
from bench.verify.report import Finding


def check_code(record: Record, trusted: Mapping[Path, str]) -> Finding:
    """Check that the user named the run's plugins and model files."""
    used = set(record.config["code"])
    if not trusted:
        return Finding("code", "not checkable", f"the run used {len(used)} code files; name them with --plugin")
    missing = used - set(trusted.values())
    if missing:
        return Finding("code", "failed", f"no --plugin has the hash {min(missing)[:12]} of a file that the run used")
    return Finding("code", "passed", f"{len(used)} files are those of the run")


def check_trusted(text: str, trusted: Mapping[Path, str]) -> None:
    """UserError if a spec of the run would import a file that the user has not named."""
    path = Path(text.partition(":")[0])
    if path.suffix == ".py" and path.resolve() not in trusted:
        raise UserError(f"'{text}' is code in a file; give --plugin {path} to run it")
