"""Locates our packages, which have common names (`attacks`, `defenses`), and installed ones."""

import importlib.util
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from bench.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the folder of our packages
PACKAGES = ("bench", "attacks", "certifiers", "defenses", "leaderboard")


def installed_folders(search_path: Iterable[str]) -> tuple[Path, ...]:
    """The folders of installed packages and of the standard library, nested folders first.

    They include the interpreter's own, the user's, the system's if an environment sees them, and those in PYTHONPATH.
    """
    own = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    others = [path for path in search_path if Path(path).name in ("site-packages", "dist-packages")]
    found = {Path(path).resolve() for path in (*own, *others)}
    return tuple(sorted(found, key=lambda folder: (-len(folder.parts), folder)))


INSTALLED = installed_folders(sys.path)


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
