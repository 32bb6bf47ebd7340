"""Exceptions of other people's code (a model, an attack, a library) as one line that names what failed and where."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import CheckError, UserError
from bench.core.registry import one_line


@contextmanager
def failures_of(what: str) -> Iterator[None]:
    """Turn any exception inside the block into a UserError: `what` failed, at which line, and why."""
    try:
        yield
    except (UserError, CheckError):
        raise
    except Exception as error:
        raise UserError(f"{what} failed at {_place(error)}: {one_line(error)}") from error


def _place(error: Exception) -> str:
    """The file and line that raised the error."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
