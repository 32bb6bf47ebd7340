"""A wall time limit that the user has set. Without one, no result depends on the clock."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_END: ContextVar[float | None] = ContextVar("end", default=None)


@contextmanager
def time_limit(end: float | None) -> Iterator[None]:
    """Inside the block, seconds_left counts down to `end`, a value of time.perf_counter(); None: there is no limit."""
    token = _END.set(end)
    try:
        yield
    finally:
        _END.reset(token)


def seconds_left() -> float:
    """The seconds until the limit, not below 0; infinite without one. Long searches check it."""
    end = _END.get()
    return math.inf if end is None else max(0.0, end - time.perf_counter())
