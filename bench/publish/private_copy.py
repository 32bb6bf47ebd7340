"""Copies a submission to a private folder, so that exactly the verified files are published.

The submitted files are untrusted: somebody may change them, or replace them by links or devices, at any time.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.core.errors import CheckError, UserError
from bench.publish.static_checks import check_file_names
from bench.publish.untrusted_files import errors_as_one_line, printable


@contextmanager
def private_copies(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield copies of run folders, and delete them after the block. Errors inside the block name the originals."""
    with ExitStack() as stack:
        temporary = stack.enter_context(TemporaryDirectory(prefix="bench-submit-"))
        originals: dict[Path, Path] = {}
        for number, folder in enumerate(folders):
            with errors_as_one_line(f"submission {folder}"):
                copy = Path(temporary, str(number), *folder.resolve().parts[-3:])  # SUITE/ENTRY/SEED is checked
                _copy_run(folder, copy)
            originals[copy] = folder
        try:
            yield list(originals)
        except (UserError, CheckError) as error:
            text = str(error)
            for copy, folder in originals.items():
                text = text.replace(printable(str(copy)), printable(str(folder))).replace(str(copy), str(folder))
            raise type(error)(text) from error


def _copy_run(folder: Path, copy: Path) -> None:
    copy.mkdir(parents=True)
    for name, max_bytes in check_file_names(folder).items():
        (copy / name).parent.mkdir(exist_ok=True)  # of contests
        copy_file(folder / name, copy / name, max_bytes)


def copy_file(path: Path, copy: Path, max_bytes: int) -> None:
    """Copy a file in one read; UserError if it is not a regular file, or has more than `max_bytes`."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as source, copy.open("wb") as target:
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            raise UserError(f"{path.name} is not a regular file; links, folders and devices are not allowed")
        left = max_bytes
        while chunk := source.read(min(2**20, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise UserError(f"{path.name} has more than {max_bytes} bytes; at most {max_bytes} are read")
            target.write(chunk)
