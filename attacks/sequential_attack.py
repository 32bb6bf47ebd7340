"""Attacks that run several times, each time on the examples that are left."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.ascent import is_misclassified
from attacks.losses import Loss, cross_entropy, loss_of
from bench.core.contracts import Attack, Batch
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class SequentialAttack(Attack):
    """One run per loss and restart, each on the examples that no earlier one has broken."""

    steps: int = 10  # gradient steps
    restarts: int = 1  # starts, each on the examples that are left

    @abstractmethod
    def run(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, loss: Loss, generator: torch.Generator
    ) -> Tensor:
        """Run the attack once and return x_adv (B,C,H,W)."""

    def losses(self, model: nn.Module, batch: Batch) -> Sequence[Loss]:
        """The losses to maximize, one after another."""
        return [cross_entropy]

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x_adv, rows = batch.x.clone(), torch.arange(len(batch), device=batch.x.device)
        runs = [loss for loss in self.losses(model, batch) for _ in range(self.restarts)]
        for number, loss in enumerate(runs, start=1):
            part = rows_of(batch, rows)
            with on_rows(rows):
                x_adv[rows] = self.run(model, part, threat.of(rows), loss_of(loss, rows), generator)
                if number < len(runs):
                    with torch.no_grad():
                        rows = rows[~is_misclassified(model(x_adv[rows]), part.y)]
            if len(rows) == 0:
                break
        return x_adv


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some rows (b,) of a batch."""
    return Batch(batch.x[rows], batch.y[rows], batch.index[rows])
