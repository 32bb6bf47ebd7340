"""Our packages have plain names (`attacks`, `defenses`); another project's of the same name must not stand in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bench.core.errors import UserError

PACKAGES = ("bench", "attacks", "certifiers", "defenses", "leaderboard")


def check_one_root() -> None:
    """UserError that names the intruder where one of our packages would come from another folder."""
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise UserError(f"package '{package}' is missing beside {root / 'bench'}; install robust-bracket again")
        found = Path(spec.origin).resolve().parent if spec.origin else next(iter(spec.submodule_search_locations or []))
        if Path(found) != root / package:
            raise UserError(
                f"package '{package}' comes from {found}, not from {root}: another project uses the name; "
                "install robust-bracket into an environment of its own, or run from another folder"
            )
