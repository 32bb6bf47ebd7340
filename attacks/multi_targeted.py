"""MultiTargeted projected gradient descent (Gowal et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from attacks.losses import Towards, others_by_logit
from attacks.pgd import PGD, until_broken
from bench.core import registry
from bench.core.contracts import Batch


@registry.attack("multi-targeted")
@dataclass(frozen=True, kw_only=True)
class MultiTargeted(PGD):
    """PGD towards one class after another in the order of the model's logits, up z_target - z_y. Gowal et al. (2019).

    `targets` classes at most, `restarts` runs for each, every run on what no earlier one has broken. Deviation: steps
    of the gradient's sign (Linf) or of the normalised gradient (L2), as in `pgd`, where the paper's best use Adam.
    """

    steps: int = 20
    targets: int = 9

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            order = others_by_logit(model(batch.x), batch.y)[:, : self.targets]

        def run(rows: Tensor, target: Tensor) -> Tensor:
            return self.run(model, batch, rows, generator, Towards(target[rows]))

        runs = [partial(run, target=target) for target in order.T for _ in range(self.restarts)]
        return until_broken(model, batch, runs)
