"""Losses that attacks maximize: (logits (B,K), labels (B,)) -> (B,); larger is worse for the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max over j != y of z_j: negative for a misclassified example. Attacks minimize it."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return own - best_other_class(logits, y).values


def label_probability(logits: Tensor, y: Tensor) -> Tensor:
    """p_y, (B,), differentiable."""
    return logits.softmax(dim=1).gather(1, y[:, None]).squeeze(1)


def reflected(logits: Tensor, y: Tensor) -> Tensor:
    """log p of the most likely incorrect class (reflected-loss paper, sections 2 and 4.3).

    With two classes this is the reflected cross entropy l_-(z) = -log(1 + e^z) at z = z_y - z_other. With more, it is
    the paper's greedy choice of the target class.
    """
    target = best_other_class(logits, y).indices
    return -functional.cross_entropy(logits, target, reduction="none")


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The DLR loss (difference of logits ratio), -(z_y - max over j != y of z_j) / (z_1st - z_3rd).

    Croce and Hein (2020), Eq. 5. It needs three classes, and is invariant to scaling and shifting the logits.
    """
    top = logits.topk(3, dim=1).values
    return -margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


@dataclass(frozen=True)
class TargetedLoss:
    """The loss z_t - z_y, for the target class t of each example: target (B,) int64."""

    target: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return -gap(logits, y, self.target)


class TargetedDLR(TargetedLoss):
    """The targeted DLR loss, -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2). Croce and Hein (2020), Eq. 6.

    It needs four classes.
    """

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        top = logits.topk(4, dim=1).values
        return -gap(logits, y, self.target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def loss_of(loss: Loss, rows: Tensor) -> Loss:
    """The loss for some of the examples of a batch."""
    return type(loss)(loss.target[rows]) if isinstance(loss, TargetedLoss) else loss


def gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_y - z_t."""
    return (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])).squeeze(1)


def kl(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """KL(p || p_adv), (B,), differentiable in both."""
    log_p, log_p_adv = functional.log_softmax(logits, dim=1), functional.log_softmax(logits_adv, dim=1)
    return functional.kl_div(log_p_adv, log_p, reduction="none", log_target=True).sum(dim=1)


def kl_from(clean_logits: Tensor) -> Loss:
    """The loss KL(p_clean || p) of TRADES' attack. It ignores the labels."""
    return lambda logits, _: kl(clean_logits, logits)


def best_other_class(logits: Tensor, y: Tensor) -> torch.return_types.max:
    """The largest logit among the incorrect classes, and that class, both (B,)."""
    own = functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, float("-inf")).max(dim=1)


def others_by_logit(logits: Tensor, y: Tensor) -> Tensor:
    """All classes except the label, by decreasing logit: (B,K-1) int64."""
    order = logits.argsort(dim=1, descending=True)
    return order[order != y[:, None]].reshape(len(y), -1)


def likeliest_targets(model: nn.Module, x: Tensor, y: Tensor, count: int) -> Sequence[Tensor]:
    """The `count` likeliest classes of images x (B,C,H,W) except the label, by decreasing logit: each (B,) int64."""
    with torch.no_grad():
        return others_by_logit(model(x), y)[:, :count].unbind(dim=1)
