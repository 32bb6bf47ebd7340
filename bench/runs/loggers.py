"""`--log tensorboard` and `--log wandb`: the figures of each epoch and of the record, for a dashboard.

A logger gets the content of log.jsonl and record.json, and changes no number. A missing package is an error before the
training. A logger that fails later causes a warning, and the run continues without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from bench.core.extras import import_extra
from bench.core.registry import one_line

LoggerName = Literal["tensorboard", "wandb"]
PROJECT = "robust-bracket"


class Backend(Protocol):
    """What a dashboard takes: scalars at a step, figures without a step, and the end."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def summary(self, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class RunLogger:
    """Sends the log of one seed to a dashboard, until it fails once."""

    def __init__(self, name: str, make: Callable[[], Backend]) -> None:
        self.name, self.sent = name, 0
        self.backend: Backend | None = None
        with self._or_off():
            self.backend = make()

    def epochs(self, log: Sequence[Mapping[str, Any]]) -> None:
        """Send the lines of a training's log that are new, one for each epoch."""
        with self._or_off():
            while self.backend is not None and self.sent < len(log):
                self.backend.scalars(numbers(log[self.sent], "training/"), self.sent + 1)
                self.sent += 1

    def result(self, accuracies: Mapping[str, float]) -> None:
        """Send the accuracies of the record, and close the dashboard's run."""
        with self._or_off():
            if self.backend is not None:
                self.backend.summary(numbers(accuracies, "accuracy/"))
                self.backend.close()

    @contextmanager
    def _or_off(self) -> Iterator[None]:
        """Turn any exception of the block into a warning, and send nothing from then on."""
        try:
            yield
        except Exception as error:  # a full disk, a lost network, or anything else of another package
            print(f"warning: --log {self.name} failed and is off from here ({one_line(error)})", file=sys.stderr)
            self.backend = None


def numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The values that are numbers, with a prefix."""
    return {
        f"{prefix}{key}": float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def check_logger(name: str) -> None:
    """UserError if the package of a logger cannot be imported."""
    import_extra("torch.utils.tensorboard" if name == "tensorboard" else name, name, f"--log {name}")


def make_logger(name: str, out: Path, run: str, seed: int, config: Mapping[str, Any]) -> RunLogger:
    """The logger of one seed, with files in OUT/tensorboard/RUN/SEED or OUT/wandb. run: the name of the run folder."""
    if name == "tensorboard":
        return RunLogger(name, lambda: TensorBoard(out / name / run / str(seed)))
    return RunLogger(name, lambda: WeightsAndBiases(out, f"{run}-{seed}", config))


class TensorBoard:
    """Writes event files, and replaces those of an earlier, interrupted process."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def summary(self, values: Mapping[str, float]) -> None:
        self.scalars(values, 0)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project `robust-bracket`; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, out: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project=PROJECT, name=name, id=name, dir=str(out), config=dict(config), resume="allow", reinit=True
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def close(self) -> None:
        self.run.finish()
