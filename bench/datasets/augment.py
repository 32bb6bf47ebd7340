"""Random crop and flip of a batch, on the device, as one gather that can be inverted pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CropFlip:
    """The row and column of the padded canvas (H+2p, W+2p) that each pixel of a batch comes from.

    rows (B,H), columns (B,W), int64; a flipped image has descending columns. No two pixels of an image come from the
    same place, so `write` and `read` are exact inverses.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def draw(cls, n: int, size: tuple[int, int], pad: int, flip: bool, generator: torch.Generator) -> CropFlip:
        """n random crops of `size` from a canvas padded by `pad`, each flipped with probability 1/2 if `flip`."""
        device = generator.device
        tops, lefts = torch.randint(2 * pad + 1, (2, n, 1), generator=generator, device=device)
        columns = torch.arange(size[1], device=device).expand(n, -1)
        if flip:
            mirrored = torch.rand((n, 1), generator=generator, device=device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        return cls(tops + torch.arange(size[0], device=device), lefts + columns)

    def read(self, canvas: Tensor, index: Tensor) -> Tensor:
        """(N,C,H+2p,W+2p) and index (B,) -> (B,C,H,W)."""
        return canvas[self._place(canvas, index)]

    def write(self, canvas: Tensor, index: Tensor, value: Tensor) -> None:
        """The inverse of read, for value (B,C,H,W)."""
        canvas[self._place(canvas, index)] = value

    def _place(self, canvas: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        channels = torch.arange(canvas.shape[1], device=canvas.device)
        return (
            index[:, None, None, None],
            channels[None, :, None, None],
            self.rows[:, None, :, None],
            self.columns[:, None, None, :],
        )
