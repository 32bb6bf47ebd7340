"""MultiTargeted projected gradient descent (Gowal et al., 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from attacks.losses import Loss, TargetedLoss, likeliest_targets
from attacks.pgd import PGD
from bench.core import registry
from bench.core.contracts import Batch


@registry.attack("multi-targeted")
@dataclass(frozen=True, kw_only=True)
class MultiTargeted(PGD):
    """PGD on z_target - z_y, for one target class after another by decreasing logit. Gowal et al. (2019).

    `restarts` runs for each of at most `targets` classes; each run attacks the examples that no earlier one has broken.
    Deviation: steps along the gradient's sign (Linf) or the normalised gradient (L2), as in `pgd`; the paper uses Adam.
    """

    steps: int = 20  # gradient steps towards each target
    targets: int = 9  # target classes, those of the highest logits

    def losses(self, model: nn.Module, batch: Batch) -> Sequence[Loss]:
        return [TargetedLoss(target) for target in likeliest_targets(model, batch.x, batch.y, self.targets)]
