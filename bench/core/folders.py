"""Changes folders atomically, even if the process is killed. Imports no torch.

A change is prepared in the hidden folder PART; the next call deletes a leftover PART. Renaming PART to CHANGE commits
the change. If the process is killed after that, the next reader or writer of the folder applies the change first.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import UserError
from bench.core.files import sync_folder

PART, CHANGE, LOCK = ".part", ".change", ".lock"
PATIENCE = 10.0  # seconds for a change by another process, which takes milliseconds


@contextmanager
def changed_in_one_step(home: Path) -> Iterator[Path]:
    """Yield a folder for new content of `home`. At the end of the block its entries replace those of the same names.

    Either all of them are in `home` afterwards, or none. Only one process changes a folder at a time.
    """
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / LOCK, f"{home} is being changed by another process; try again", PATIENCE):
        _recover(home)
        part = home / PART
        part.mkdir()
        try:
            yield part
            _sync(part)
            part.rename(home / CHANGE)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync_folder(home)
        _recover(home)


def recovered(home: Path) -> Path:
    """Remove leftovers of a killed process from `home`, apply a committed change, and return `home`."""
    left = [name for name in (PART, CHANGE, LOCK) if (home / name).exists()]
    if CHANGE in left or (left and os.access(home, os.W_OK)):
        with locked(home / LOCK, f"{home} is being changed by another process; try again", PATIENCE):
            _recover(home)
    return home


def _recover(home: Path) -> None:
    """Apply a committed change, and delete an uncommitted one. The caller holds the lock."""
    part, ready = home / PART, home / CHANGE
    shutil.rmtree(part, ignore_errors=True)
    if not ready.exists():
        return
    for new in sorted(ready.iterdir()):
        old = home / new.name
        if old.is_dir():
            old.rename(part)  # so that the name is free at once
        new.replace(old)
        shutil.rmtree(part, ignore_errors=True)
    ready.rmdir()
    sync_folder(home)


def _sync(folder: Path) -> None:
    """Write everything in the folder to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of a killed process. The caller must hold the lock of the folder."""
    for part in folder.glob(".*.part"):
        part.unlink()


def visible_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, in order, without hidden ones, which hold unfinished work."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


@contextmanager
def locked(path: Path, problem: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` inside the block; UserError(problem) if another process has it for `patience` s.

    A process that is killed leaves the file, but not the lock.
    """
    from filelock import FileLock, Timeout  # here, because reading published results does not need it

    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise UserError(problem) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
