"""Targeted projected gradient descent: towards one given class (Kurakin et al., 2017)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import Loss, TargetedLoss, others_by_logit
from attacks.pgd import PGD
from bench.core import registry
from bench.core.contracts import Batch
from bench.core.errors import UserError
from bench.core.threat import ThreatModel


class TargetedCrossEntropy(TargetedLoss):
    """log p of the target class."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return -functional.cross_entropy(logits, self.target, reduction="none")


@registry.attack("targeted")
@dataclass(frozen=True, kw_only=True)
class Targeted(PGD):
    """PGD that minimises the cross entropy of one class other than the label.

    Kurakin et al. (2017); thesis, section 2.1. As in every attack here, a misclassified point of any class counts and
    ends the search. `multi-targeted` tries one class after another.
    """

    target: int | Literal["likely", "least-likely"] = "least-likely"  # a class, or the wrong class of extreme logit

    def check_fits(self, threat: ThreatModel, shape: tuple[int, ...], classes: int) -> None:
        super().check_fits(threat, shape, classes)
        if isinstance(self.target, int) and not 0 <= self.target < classes:
            raise UserError(f"target is {self.target}; it must be 0 to {classes - 1}, likely or least-likely")

    def losses(self, model: nn.Module, batch: Batch) -> Sequence[Loss]:
        with torch.no_grad():
            order = others_by_logit(model(batch.x), batch.y)
        if not isinstance(self.target, int):
            return [TargetedCrossEntropy(order[:, 0 if self.target == "likely" else -1])]
        target = torch.full_like(batch.y, self.target)
        # an image of the target class itself is attacked towards its most likely wrong class
        return [TargetedCrossEntropy(torch.where(target == batch.y, order[:, 0], target))]
