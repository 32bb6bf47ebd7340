"""Records the data files that a block of code opens, such as weights beside a model file. Imports no torch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from bench.core.package_origins import INSTALLED, ROOT

SYSTEM = tuple(Path(path).resolve() for path in (sys.prefix, sys.base_prefix, "/usr", "/etc", "/proc", "/sys", "/dev"))
_recordings: list[set[Path]] = []


@contextmanager
def record_opened_files(opened: set[Path]) -> Iterator[None]:
    """Add to `opened` the files that Python code opens for reading inside the block.

    Source code, hidden files, and files of the system, the Python installation and this project are left out. Files
    that compiled code opens directly, as safetensors does, are not seen.
    """
    _install_hook()
    recording: set[Path] = set()
    _recordings.append(recording)
    try:
        yield
    finally:
        _recordings.remove(recording)
        opened.update(path for path in recording if _is_data(path))


@cache
def _install_hook() -> None:
    sys.addaudithook(_on_event)  # it cannot be removed again, so it is added once and does nothing outside a block


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if not _recordings or event != "open":
        return
    path, _, flags = arguments
    if isinstance(path, str | bytes) and not flags & (os.O_WRONLY | os.O_RDWR):
        for opened in _recordings:
            opened.add(Path(os.fsdecode(path)).resolve())


def _is_data(path: Path) -> bool:
    if path.suffix in (".py", ".pyc", ".so") or any(part.startswith(".") for part in path.parts[1:]):
        return False
    return path.is_file() and not any(path.is_relative_to(folder) for folder in (*SYSTEM, *INSTALLED, ROOT))
