"""A batch of labelled images, and the crop and flip that made them."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class View(Protocol):
    """How a batch was cropped and flipped from its padded images (the canvas); invertible pixel by pixel."""

    def read(self, canvas: Tensor, index: Tensor) -> Tensor: ...
    def write(self, canvas: Tensor, index: Tensor, value: Tensor) -> None: ...


@dataclass(frozen=True)
class Batch:
    """x (B,C,H,W) float32 in [0,1], y (B,) int64, index (B,) int64: the rows of the examples in their split."""

    x: Tensor
    y: Tensor
    index: Tensor
    view: View | None = None  # the crop and flip that made x; None if there was none
    mixed: Tensor | None = None  # (B,K): soft labels of mixed images (CutMix)
    worst_points: Tensor | None = None  # like x: the points of lowest margin that earlier attacks found, for certifiers

    def __len__(self) -> int:
        return len(self.y)

    @property
    def target(self) -> Tensor:
        """The target of the cross entropy: labels (B,), or soft labels (B,K) if images are mixed."""
        return self.y if self.mixed is None else self.mixed

    def read(self, bank: Tensor) -> Tensor:
        """The batch's rows of a per-example bank, at least in float32: (N,...) -> (B,...); padded
        (N,C,H+2p,W+2p) -> like x."""
        rows = bank[self.index] if bank.dim() < 4 or self.view is None else self.view.read(bank, self.index)
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def write(self, bank: Tensor, value: Tensor) -> None:
        """Write `value` to the entries that `read` reads; entries that were cropped away keep their values."""
        value = value.detach().to(bank.dtype)
        if bank.dim() < 4 or self.view is None:
            bank[self.index] = value
        else:
            self.view.write(bank, self.index, value)
