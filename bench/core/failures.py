"""Turns exceptions of external code (a model, an attack, a library) into one line that says what failed and where."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import CheckError, UserError
from bench.core.registry import one_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # error numbers of a full disk
OUT_OF_MEMORY = (
    "the memory is used up; take a smaller batch (--set batch_size=64), a smaller model, fewer --jobs or another "
    "--device, and run the command again: it continues"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this machine (Python or torch) or the GPU is out of memory. torch raises a RuntimeError for both."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(re.search("out of memory|can't allocate memory", str(error)))
    )


@contextmanager
def failures_of(what: str) -> Iterator[None]:
    """Turn any exception inside the block into a UserError: `what` failed, at which line, and why.

    A full disk or memory is not a failure of external code; its exception is passed on unchanged.
    """
    try:
        yield
    except (UserError, CheckError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{what}: {OUT_OF_MEMORY}") from error
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(f"{what} failed at {_place(error)}: {one_line(error)}") from error


def _place(error: Exception) -> str:
    """The file and line that raised the error."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
