"""Progress on standard error: a bar on a terminal, a line now and then elsewhere, nothing with `--quiet`."""

import logging
import os
import sys
import time
from types import TracebackType
from typing import Self, SupportsFloat

from tqdm import tqdm

LOGGER = logging.getLogger("bench.progress")  # messages of the running attack; `--quiet` disables it
BAR_PAUSE, LINE_PAUSE = 0.5, 15.0  # seconds between two updates of a bar, and between two lines


class Progress(logging.Handler):
    """Shows how much of `total` is done, followed by a note and the training loss.

    While it is open, a message to the logger `bench.progress` becomes its note. If the message has an attribute `ahead`
    (`extra={"ahead": n}`), n more examples count as done until the next call of `advance`. If several are open, the
    innermost gets the messages. part: it shows a part of another one's work, and leaves no line or bar at its end.
    """

    def __init__(self, what: str, total: int, unit: str, *, show: bool = True, part: bool = False) -> None:
        super().__init__(logging.INFO)
        self.part, self.others = part, list[logging.Handler]()
        self.what, self.total, self.unit = what, total, unit
        self.done = self.ahead = 0.0
        self.note = ""
        self.loss: SupportsFloat | None = None
        self.show = show and not LOGGER.disabled
        self.bar = tqdm(
            total=total, desc=what, unit=unit, mininterval=0, miniters=0, dynamic_ncols=True,
            leave=not part, disable=not (self.show and _is_terminal()),
        )  # fmt: skip
        self.start = self.drawn = time.monotonic()

    def __enter__(self) -> Self:
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        self.others, LOGGER.handlers = LOGGER.handlers, [self]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        LOGGER.handlers = self.others
        if self.show and kind is None and not self.part:
            self._draw()
        self.bar.close()

    def advance(self, n: float, note: str = "", *, loss: SupportsFloat | None = None) -> None:
        """Add n to the work done. loss: a number, or a tensor on any device, which is read only when it is shown."""
        self.done += n
        self.ahead = 0.0
        self.note = note or self.note
        self.loss = self.loss if loss is None else loss
        self._draw_if_due()

    def emit(self, record: logging.LogRecord) -> None:
        self.note = record.getMessage()
        self.ahead = getattr(record, "ahead", self.ahead)
        self._draw_if_due()

    def _draw_if_due(self) -> None:
        pause = LINE_PAUSE if self.bar.disable else BAR_PAUSE
        if self.show and time.monotonic() - self.drawn >= pause:
            self._draw()

    def _draw(self) -> None:
        self.drawn = time.monotonic()
        done = round(self.done + self.ahead)
        words = [self.note, "" if self.loss is None else f"loss {float(self.loss):.3g}"]
        notes = ", ".join(word for word in words if word)
        if self.bar.disable:
            seconds = f"{self.drawn - self.start:.0f} s"
            line = ", ".join(word for word in (f"{done:,} of {self.total:,} {self.unit}s", notes, seconds) if word)
            print(f"{self.what}: {line}", file=sys.stderr, flush=True)
        else:
            self.bar.set_postfix_str(notes, refresh=False)
            self.bar.update(done - self.bar.n)


def _is_terminal() -> bool:
    """Whether a bar can be drawn. CI services set CI, and some of them give their jobs a terminal."""
    return sys.stderr.isatty() and os.environ.get("CI", "").lower() not in ("true", "1")
