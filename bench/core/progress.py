"""Progress bars on standard error, followed by the last message of the running attack."""

import logging
import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm

LOGGER = logging.getLogger("bench.progress")


class Progress(logging.Handler):
    """One bar. While it is open, messages to the logger `bench.progress` appear behind it."""

    def __init__(self, what: str, total: int, unit: str, *, show: bool = True) -> None:
        super().__init__(logging.INFO)
        pause = 0.5 if sys.stderr.isatty() else 5.0  # seconds between two updates; few in a log file
        self.bar = tqdm(
            total=total, desc=what, unit=unit, mininterval=pause, maxinterval=pause, dynamic_ncols=True,
            disable=not show,
        )  # fmt: skip

    def __enter__(self) -> Self:
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        LOGGER.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        LOGGER.removeHandler(self)
        self.bar.close()

    def advance(self, n: int, note: str = "") -> None:
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(n)

    def emit(self, record: logging.LogRecord) -> None:
        self.bar.set_postfix_str(record.getMessage(), refresh=sys.stderr.isatty())
