"""A check that our packages, which have common names (`attacks`, `defenses`), are not those of another project."""

import importlib.util
from pathlib import Path

from bench.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the folder of our packages
PACKAGES = ("bench", "attacks", "certifiers", "defenses", "leaderboard")


def check_package_origins() -> None:
    """UserError if one of our packages would be imported from another folder."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise UserError(f"package '{package}' is missing beside {ROOT / 'bench'}; install robust-bracket again")
        folder = Path(spec.origin).parent if spec.origin else Path(*list(spec.submodule_search_locations or [])[:1])
        if folder.resolve() != ROOT / package:
            raise UserError(
                f"package '{package}' comes from {folder}, not from {ROOT}: another project has the same name; "
                "install robust-bracket into an environment of its own, or run from another folder"
            )
