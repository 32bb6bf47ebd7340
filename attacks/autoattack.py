"""AutoAttack (Croce and Hein, 2020), run by its authors' package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError

MOST_TARGETS = 9
SMALLEST = 5  # pixels to a side, for Square under L2 and L1
PROGRESS = logging.getLogger("bench.progress")


@registry.attack("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square (version standard); APGD with EoT (rand).

    Croce and Hein (2020), through their package pyautoattack: one call a batch, seeded by the generator, so that a
    batch's result depends on nothing but the run's seed and the batch. With fewer than ten classes it takes as many
    targets as there are; its targeted loss is undefined below four. What it warns of is warned of here.
    """

    norms = ("Linf", "L2", "L1")

    version: Literal["standard", "plus", "rand"] = "standard"

    def check_fits(self, shape: tuple[int, ...], classes: int) -> None:
        fewest = 3 if self.version == "rand" else 4
        if classes < fewest:
            raise UserError(
                f"autoattack version {self.version} needs at least {fewest} classes, for its DLR loss is undefined "
                f"with {classes}; use --attacks pgd:restarts=10"
            )
        if self.threat.norm != "Linf" and self.version != "rand" and min(shape[1:]) < SMALLEST:
            raise UserError(
                f"autoattack under {self.threat.norm} needs images of at least {SMALLEST}x{SMALLEST} pixels, for its "
                "Square attack places tiles; use autoattack:version=rand or pgd"
            )
        if not isinstance(self.threat.eps, float) or self.threat.box != (0.0, 1.0):
            raise UserError("autoattack takes one eps for all examples and the box [0, 1]")

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        from pyautoattack import AutoAttack as Theirs

        classes = model(batch.x[:1]).shape[1]
        self.check_fits(tuple(batch.x.shape[1:]), classes)
        assert isinstance(self.threat.eps, float)
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        devices = [batch.x.device] if batch.x.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _messages():
            attack = Theirs(
                model, norm=self.threat.norm, eps=self.threat.eps, seed=seed, device=batch.x.device,
                version=self.version,
            )  # fmt: skip
            for part in (attack.apgd_targeted, attack.fab):
                part.n_target_classes = min(part.n_target_classes, MOST_TARGETS, classes - 1)
            x_adv, _ = attack.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch))
        return x_adv


class _Handler(logging.Handler):
    """Warnings of the package become Python warnings; what it says of its progress goes to our progress display."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            warnings.warn(message, stacklevel=2)
        elif message.startswith("running"):
            PROGRESS.info(message)


@contextmanager
def _messages() -> Iterator[None]:
    logger, handler = logging.getLogger("auto-attack"), _Handler()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
