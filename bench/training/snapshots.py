"""An ensemble of the states that one network had during its training."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Snapshots(nn.Module):
    """In train mode, the network `live`; in eval mode, the logarithm of the mean softmax of the snapshots taken so far.

    Its cross entropy is -log of the mean probability. Before the first snapshot, and in `without_snapshots`, eval mode
    uses `live`.
    """

    taken: Tensor

    def __init__(self, live: nn.Module, members: int) -> None:
        super().__init__()
        self.live = live
        self.members = nn.ModuleList(copy.deepcopy(live).requires_grad_(False) for _ in range(members))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self._alone = False

    def take(self) -> None:
        """Keep the state of `live` as the next snapshot."""
        self.members[int(self.taken)].load_state_dict(self.live.state_dict())
        self.taken += 1

    @contextmanager
    def without_snapshots(self) -> Iterator[None]:
        """Inside the block, eval mode uses `live`: for attacks on the network in training."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self._alone:
            logits: Tensor = self.live(x)
            return logits
        members = list(self.members)[: int(self.taken)] or [self.live]
        log_p = [member(x).log_softmax(dim=1) for member in members]
        return torch.stack(log_p).logsumexp(dim=0) - math.log(len(log_p))
