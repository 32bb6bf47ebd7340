"""Losses that attacks ascend: (logits (B,K), labels (B,)) -> (B,), larger is worse for the model."""

from __future__ import annotations

from collections.abc import Callable

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


BY_NAME: dict[str, Loss] = {"ce": cross_entropy, "reflected": reflected}
