"""AutoAttack (Croce and Hein, 2020), through its authors' package."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.libraries import eps_in_unit_box
from attacks.sequential_attack import rows_of
from attacks.square import Square
from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel

MAX_TARGETS = 9
TILES = 5  # tiles per side of the image, with which Square starts under L2 and L1
PROGRESS = logging.getLogger("bench.progress")


@registry.attack("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square (version standard); APGD with EoT (rand).

    Croce and Hein (2020), through their package pyautoattack. Each batch is one call, seeded by the generator, so its
    result depends only on the run's seed and the batch. With fewer than ten classes all incorrect classes are targets
    (APGD-T under L1: five); with fewer than four the targeted loss is undefined. Warnings of the package become Python
    warnings. Under L2 and L1 the package's Square fails on images of some sizes (12x12); there `square` of this project
    replaces it, with a warning.
    """

    norms = ("Linf", "L2", "L1")

    version: Literal["standard", "plus", "rand"] = "standard"  # plus: more attacks; rand: for random models

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        min_classes = 3 if self.version == "rand" else 4
        if classes < min_classes:
            raise UserError(
                f"autoattack version {self.version} needs at least {min_classes} classes for its DLR loss, not "
                f"{classes}; use --attacks pgd:restarts=10"
            )
        eps_in_unit_box(threat, "autoattack")

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        from pyautoattack import AutoAttack as PyAutoAttack

        classes = model(batch.x[:1]).shape[1]
        self.check_fits(threat, tuple(batch.x.shape[1:]), classes)
        eps = eps_in_unit_box(threat, "autoattack")
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        devices = [batch.x.device] if batch.x.device.type == "cuda" else []
        messages = _Handler(len(batch))
        with torch.random.fork_rng(devices), _forwarded(messages, model):
            attack = PyAutoAttack(
                model, norm=threat.norm, eps=eps, seed=seed, device=batch.x.device, version=self.version
            )
            for part in (attack.apgd_targeted, attack.fab):
                part.n_target_classes = min(part.n_target_classes, MAX_TARGETS, classes - 1)
            own_square = "square" in attack.attacks_to_run and not can_tile(threat, tuple(batch.x.shape[2:]))
            if own_square:
                attack.attacks_to_run.remove("square")
            messages.passes = {stage: _passes(attack, stage) for stage in attack.attacks_to_run}
            x_adv, _ = attack.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch))
        if own_square:
            height, width = batch.x.shape[2:]
            warnings.warn(
                f"the package's Square fails on {height}x{width} images under {threat.norm}; `square` replaced it",
                stacklevel=2,
            )
            square = Square(queries=attack.square.n_queries)
            rows = (model(x_adv).argmax(dim=1) == batch.y).nonzero().squeeze(1)
            if len(rows) > 0:
                with on_rows(rows):
                    x_adv[rows] = square.perturb(model, rows_of(batch, rows), threat, generator=generator)
        return x_adv


def can_tile(threat: ThreatModel, size: tuple[int, ...]) -> bool:
    """Whether the tiles with which the package's Square starts fit into images of `size` (H,W)."""
    side = size[0] // TILES
    start = (size[0] - TILES * side) // 2
    if threat.norm == "Linf" or side == 1:  # tiles of one pixel may lie outside
        return True
    return side > 0 and all(start + length // side * side <= length for length in size)


def _passes(attack: Any, stage: str) -> int:
    """The approximate number of forward passes that a stage of the package makes per batch."""
    targets = attack.fab.n_target_classes if stage == "fab-t" else attack.apgd_targeted.n_target_classes
    passes = {
        "apgd-t": attack.apgd_targeted.n_iter * attack.apgd_targeted.n_restarts * targets,
        "fab": 2 * attack.fab.n_iter * attack.fab.n_restarts,
        "fab-t": 2 * attack.fab.n_iter * targets,
        "square": attack.square.n_queries,
    }
    return int(passes.get(stage, attack.apgd.n_iter * attack.apgd.n_restarts))


class _Handler(logging.Handler):
    """Turns the package's warnings into Python warnings, and its progress messages into ours.

    While a stage runs, `ahead` is the share of the batch's `examples` that counts as done: the finished stages, plus a
    share of the current stage according to its forward passes. passes: the expected number by stage.
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples
        self.passes: dict[str, int] = {}
        self.stage, self.made = "", 0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            warnings.warn(message, stacklevel=2)
        elif message.startswith("running"):
            self.stage, self.made = message.removeprefix("running "), 0
            self.count_pass()

    def count_pass(self, *_: Any) -> None:
        """A forward hook."""
        if self.stage not in self.passes:
            return
        finished, share = list(self.passes).index(self.stage), min(self.made / self.passes[self.stage], 1.0)
        self.made += 1
        ahead = self.examples * (finished + share) / len(self.passes)
        PROGRESS.info(f"running {self.stage}", extra={"ahead": ahead})


@contextmanager
def _forwarded(messages: _Handler, model: nn.Module) -> Iterator[None]:
    """Send the package's messages to a handler inside the block, and let it count the passes through the model."""
    logger, hook = logging.getLogger("auto-attack"), model.register_forward_hook(messages.count_pass)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(messages)
    try:
        yield
    finally:
        hook.remove()
        logger.removeHandler(messages)
        logger.setLevel(level)
        logger.propagate = propagate
