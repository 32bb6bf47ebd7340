"""The difficulty of training examples and quantities derived from it (thesis, section 4.3.1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from bench.core.contracts import mode_of
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.studies.adversarial_training.adversarial_runs import CHUNK, attacked
from bench.studies.claims import Floats
from bench.training.histories import LOSS, WRONG
from bench.training.loop import Loop

GROUPS = 10
SHOWN = (0, 3, 6, 9)  # groups of Figure 4.21, the hardest first


class History(NamedTuple):
    """The loss and whether it was misclassified, for each training example in each epoch, (N, epochs)."""

    loss: Floats
    wrong: Floats

    @property
    def difficulty(self) -> Floats:
        """Difficulty by the mean loss over the epochs."""
        return difficulty(self.loss.mean(axis=1))

    @property
    def difficulty_by_error(self) -> Floats:
        """Difficulty by the share of epochs in which an example was misclassified."""
        return difficulty(self.wrong.mean(axis=1))


def history_of(loop: Loop) -> History:
    """The history of a training with `keep_losses`, of its finished epochs."""
    loss, wrong = (loop.bank[name][:, : loop.epoch].cpu().double().numpy() for name in (LOSS, WRONG))
    return History(loss, wrong)


def difficulty(loss: Floats) -> Floats:
    """Eq. 4.30 for mean losses (N,): the share of examples with a larger loss; ties count one half.

    It is near 0 for the hardest example and near 1 for the easiest.
    """
    return (len(loss) + 0.5 - rankdata(loss)) / len(loss)


def distance(first: Floats, second: Floats) -> float:
    """The D-distance, Eq. 4.31: the mean difference of two difficulties of the same examples."""
    return float(np.abs(first - second).mean())


def groups(values: Floats) -> npt.NDArray[np.int64]:
    """Eq. 4.32: the group of each example, 0 (hardest) to 9 (easiest), for difficulties (N,)."""
    return np.minimum((GROUPS * values).astype(np.int64), GROUPS - 1)


def means_of_groups(values: Floats, difficulties: Floats) -> Floats:
    """The mean over each group, (10, ...), for values (N, ...)."""
    of = groups(difficulties)
    return np.stack([values[of == group].mean(axis=0) for group in range(GROUPS)])


def feature_norms(model: nn.Module, split: Split, threat: ThreatModel, seed: int) -> Floats:
    """The L2 norm (N,) of the input of the last linear layer, at images under PGD."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    norms: list[Tensor] = []
    with mode_of(model, training=False):
        for batch in split.in_order(CHUNK):
            x = attacked(model, batch, threat, seed)
            handle = last.register_forward_pre_hook(lambda _, inputs: norms.append(inputs[0].flatten(1).norm(dim=1)))
            with torch.no_grad():
                model(x)
            handle.remove()
    return np.asarray(torch.cat(norms).double().numpy())
