"""Losses that attacks ascend: (logits (B,K), labels (B,)) -> (B,), larger is worse for the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max over j != y of z_j: not positive exactly where the model may be wrong. A descent direction."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return own - best_wrong(logits, y).values


def reflected(logits: Tensor, y: Tensor) -> Tensor:
    """log p of the most likely wrong class (reflected-loss.txt, sections 2 and 4.3).

    With two classes this is the reflected cross entropy l_-(z) = -log(1 + e^z) at z = z_y - z_other; with more, the
    paper's greedy choice of the class to climb.
    """
    target = best_wrong(logits, y).indices
    return -functional.cross_entropy(logits, target, reduction="none")


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference-of-logits ratio, -(z_y - max over j != y of z_j) / (z_1st - z_3rd). Croce and Hein (2020), Eq. 5.

    Needs three classes. It does not change when the logits are scaled or shifted.
    """
    top = logits.topk(3, dim=1).values
    return -margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_towards(target: Tensor) -> Loss:
    """The targeted ratio, -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2). Croce and Hein (2020), Eq. 6. Four classes."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        top = logits.topk(4, dim=1).values
        return -gap(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    return loss


@dataclass(frozen=True)
class Towards:
    """The loss z_t - z_y, for a target class t of each example, (B,) int64."""

    target: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return -gap(logits, y, self.target)

    def of(self, rows: Tensor) -> Towards:
        """The loss of some of the examples."""
        return Towards(self.target[rows])


def gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_y - z_t."""
    return (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])).squeeze(1)


def kl(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """KL(p || p_adv), (B,), differentiable in both."""
    clean, there = functional.log_softmax(logits, dim=1), functional.log_softmax(logits_adv, dim=1)
    return functional.kl_div(there, clean, reduction="none", log_target=True).sum(dim=1)


def kl_from(clean_logits: Tensor) -> Loss:
    """The loss KL(p_clean || p) of TRADES' attack; the labels are not used."""
    return lambda logits, _: kl(clean_logits, logits)


def best_wrong(logits: Tensor, y: Tensor) -> torch.return_types.max:
    """The largest logit of a wrong class and that class, both (B,)."""
    own = functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, float("-inf")).max(dim=1)


def others_by_logit(logits: Tensor, y: Tensor) -> Tensor:
    """All classes but the label, the one with the highest logit first: (B,K-1) int64."""
    order = logits.argsort(dim=1, descending=True)
    return order[order != y[:, None]].reshape(len(y), -1)
