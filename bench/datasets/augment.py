"""Random crop, flip, cutout and CutMix of a batch, on the device, invertible pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.core.batches import View


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


@dataclass(frozen=True)
class Cutout:
    """Sets a square of each image to 0 (DeVries and Taylor, 2017), after the crop and flip of `view`.

    kept (B,1,H,W) bool: the pixels outside of the square. A canvas of perturbations keeps its values inside the square,
    because an attack has not seen the image there; they are read as 0.
    """

    kept: Tensor
    view: View | None

    @classmethod
    def draw(cls, n: int, size: tuple[int, int], side: int, view: View | None, generator: torch.Generator) -> Cutout:
        """n squares of `side` pixels with a uniform centre, cropped to the image."""
        device = generator.device
        inside = []
        for length in size:
            centre = torch.randint(length, (n, 1), generator=generator, device=device)
            place = torch.arange(length, device=device) - (centre - side // 2)
            inside.append((place >= 0) & (place < side))
        return cls(~(inside[0][:, None, :, None] & inside[1][:, None, None, :]), view)

    def read(self, canvas: Tensor, index: Tensor) -> Tensor:
        """(N,C,H+2p,W+2p) and index (B,) -> (B,C,H,W)."""
        return self._whole(canvas, index) * self.kept

    def write(self, canvas: Tensor, index: Tensor, value: Tensor) -> None:
        """The inverse of read where pixels are kept, for value (B,C,H,W)."""
        value = torch.where(self.kept, value, self._whole(canvas, index))
        if self.view is None:
            canvas[index] = value
        else:
            self.view.write(canvas, index, value)

    def _whole(self, canvas: Tensor, index: Tensor) -> Tensor:
        return canvas[index] if self.view is None else self.view.read(canvas, index)


@dataclass(frozen=True)
class CutMix:
    """One rectangle in which each image of a batch shows another image (Yun et al., 2019), after the `view` of both.

    inside (H,W) bool: the pixels of the rectangle. order (B,): a permutation, the image that each one shows there. So
    each pixel of each image is in the batch once, and a canvas of perturbations is read and written exactly, each pixel
    for the example that it belongs to.
    """

    inside: Tensor
    order: Tensor
    view: View | None

    @classmethod
    def draw(cls, n: int, size: tuple[int, int], view: View | None, generator: torch.Generator) -> CutMix:
        """A uniform share of the area and a uniform centre; the rectangle is cropped to the image."""
        device = generator.device
        side = torch.rand((), generator=generator, device=device).sqrt()
        rows_and_columns = []
        for length in size:
            centre = torch.randint(length, (), generator=generator, device=device)
            place = torch.arange(length, device=device) - centre + side * length / 2
            rows_and_columns.append((place >= 0) & (place < side * length))
        inside = rows_and_columns[0][:, None] & rows_and_columns[1]
        return cls(inside, torch.randperm(n, generator=generator, device=device), view)

    def mix(self, values: Tensor) -> Tensor:
        """Mix images (B,C,H,W): each gets the rectangle of another one."""
        return torch.where(self.inside, values[self.order], values)

    def labels(self, y: Tensor, classes: int) -> Tensor:
        """The shares (B,K) of the classes in the mixed images, by area."""
        share = self.inside.float().mean()
        whole = one_hot(y, classes).float()
        return (1 - share) * whole + share * whole[self.order]

    def read(self, canvas: Tensor, index: Tensor) -> Tensor:
        """(N,C,H+2p,W+2p) and index (B,) -> (B,C,H,W)."""
        return self.mix(canvas[index] if self.view is None else self.view.read(canvas, index))

    def write(self, canvas: Tensor, index: Tensor, value: Tensor) -> None:
        """The inverse of read."""
        own = torch.where(self.inside, value[self.order.argsort()], value)
        if self.view is None:
            canvas[index] = own
        else:
            self.view.write(canvas, index, own)
