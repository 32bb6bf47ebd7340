"""AutoAttack (Croce and Hein, 2020), through its authors' package."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.libraries import eps_in_unit_box
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel

MAX_TARGETS = 9
MIN_SIDE = 5  # pixels, for Square under L2 and L1
PROGRESS = logging.getLogger("bench.progress")


@registry.attack("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square (version standard); APGD with EoT (rand).

    Croce and Hein (2020), through their package pyautoattack. Each batch is one call, seeded by the generator, so its
    result depends only on the run's seed and the batch. With fewer than ten classes all incorrect classes are targets;
    below four the targeted loss is undefined. Warnings of the package become Python warnings.
    """

    norms = ("Linf", "L2", "L1")

    version: Literal["standard", "plus", "rand"] = "standard"

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        min_classes = 3 if self.version == "rand" else 4
        if classes < min_classes:
            raise UserError(
                f"autoattack version {self.version} needs at least {min_classes} classes for its DLR loss, not "
                f"{classes}; use --attacks pgd:restarts=10"
            )
        if threat.norm != "Linf" and self.version != "rand" and min(shape[1:]) < MIN_SIDE:
            raise UserError(
                f"autoattack under {threat.norm} needs images of at least {MIN_SIDE}x{MIN_SIDE} pixels for its Square "
                "attack; use autoattack:version=rand or pgd"
            )
        eps_in_unit_box(threat, "autoattack")

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        from pyautoattack import AutoAttack as PyAutoAttack

        classes = model(batch.x[:1]).shape[1]
        self.check_fits(threat, tuple(batch.x.shape[1:]), classes)
        eps = eps_in_unit_box(threat, "autoattack")
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        devices = [batch.x.device] if batch.x.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _forwarded_messages():
            attack = PyAutoAttack(
                model, norm=threat.norm, eps=eps, seed=seed, device=batch.x.device, version=self.version
            )
            for part in (attack.apgd_targeted, attack.fab):
                part.n_target_classes = min(part.n_target_classes, MAX_TARGETS, classes - 1)
            x_adv, _ = attack.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch))
        return x_adv


class _Handler(logging.Handler):
    """Turns the package's warnings into Python warnings, and its progress messages into ours."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            warnings.warn(message, stacklevel=2)
        elif message.startswith("running"):
            PROGRESS.info(message)


@contextmanager
def _forwarded_messages() -> Iterator[None]:
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
