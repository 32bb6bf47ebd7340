"""One split of a data set: uint8 images on the device, or streamed from files, and labels, as batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from bench.core.batches import View
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch
from bench.datasets.arrays import Arrays
from bench.datasets.augment import CropFlip, CutMix, Cutout
from bench.datasets.image_files import ImageFiles
from bench.datasets.streaming import StreamedCanvas


class Split:
    """x uint8 (N,H,W,C), y int64 (N,). For random crops, the images are stored on a canvas padded by `crop` zeros."""

    classes: int | None

    def __init__(
        self, x: np.ndarray, y: np.ndarray, device: torch.device, *, crop: int = 0, flip: bool = False, cutout: int = 0,
        cutmix: float = 0.0, classes: int | None = None,
    ) -> None:  # fmt: skip
        """x: ImageFiles are streamed. classes: number of classes of CutMix's labels; None: as in `y`."""
        labels = torch.from_numpy(np.ascontiguousarray(y)).to(device)
        if isinstance(x, ImageFiles):
            self._hold(StreamedCanvas(x, crop, device), labels, x.shape[1:3], crop, flip)
        else:
            images = torch.from_numpy(np.ascontiguousarray(x)).to(device).permute(0, 3, 1, 2)
            self._hold(zero_pad(images, [crop] * 4).contiguous(), labels, x.shape[1:3], crop, flip)
        self.cutout, self.cutmix, self.classes = cutout, cutmix, classes

    @classmethod
    def test(cls, arrays: Arrays, device: torch.device, n_examples: int | None = None) -> Split:
        """The first `n_examples` test examples of a data set; all by default."""
        return cls(np.asarray(arrays.x_test[:n_examples]), arrays.y_test[:n_examples], device)

    @classmethod
    def training(
        cls, arrays: Arrays, config: TrainingConfig, device: torch.device, rows: np.ndarray | None = None
    ) -> Split:
        """The training examples `rows` (all by default) of a data set, with the augmentation of the settings."""
        chosen = slice(None) if rows is None else rows
        return cls(
            arrays.x_train[chosen], arrays.y_train[chosen], device, crop=config.crop, flip=config.flip,
            cutout=config.cutout, cutmix=config.cutmix, classes=arrays.classes,
        )  # fmt: skip

    @classmethod
    def of_tensors(cls, x: Tensor, y: Tensor) -> Split:
        """A split of images that are already float32 (N,C,H,W) in [0, 1], and labels (N,) int64."""
        split = cls.__new__(cls)
        split._hold(x.detach().contiguous(), y, (x.shape[2], x.shape[3]), crop=0, flip=False)
        return split

    def _hold(self, canvas: Tensor | StreamedCanvas, y: Tensor, size: tuple[int, ...], crop: int, flip: bool) -> None:
        self.size = (size[0], size[1])
        self.canvas = canvas
        self.y: Tensor = y
        self.crop, self.flip, self.cutout, self.cutmix = crop, flip, 0, 0.0
        self.classes = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as the model sees it."""
        return (self.canvas.shape[1], *self.size)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Batches in the original order, not augmented."""
        for start in range(0, len(self), batch_size):
            index = torch.arange(start, min(start + batch_size, len(self)), device=self.y.device)
            yield self.take(index)

    def take(self, index: Tensor) -> Batch:
        """The examples `index`, not augmented."""
        rows, columns = (slice(self.crop, self.crop + side) for side in self.size)
        if isinstance(self.canvas, StreamedCanvas):
            x = self.canvas.rows(index)[:, :, rows, columns]
        else:
            x = self.canvas[index, :, rows, columns]
        return Batch(_in_unit_range(x), self.y[index], index)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch in random order, augmented. A last batch of one example is dropped: batch norm cannot use it."""
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        for start in range(0, len(self), batch_size):
            index = order[start : start + batch_size]
            if len(index) == 1 < len(self):
                return
            batch, following = self.augmented(index, generator), order[start + batch_size : start + 2 * batch_size]
            if isinstance(self.canvas, StreamedCanvas) and len(following):
                self.canvas.read_ahead(following)
            yield batch

    def count_batches(self, batch_size: int) -> int:
        """The number of batches that `shuffled` yields."""
        full, rest = divmod(len(self), batch_size)
        return max(1, full + (rest > 1))

    def augmented(self, index: Tensor, generator: torch.Generator) -> Batch:
        """The examples `index`, with the random crop, flip, cutout and CutMix of the split."""
        view: View | None = None
        if self.crop or self.flip:
            view = CropFlip.draw(len(index), self.size, self.crop, self.flip, generator)
        if self.cutout:
            view = Cutout.draw(len(index), self.size, self.cutout, view, generator)
        batch = self.take(index) if view is None else self._seen(index, view)
        if not self.cutmix or float(torch.rand((), generator=generator, device=generator.device)) >= self.cutmix:
            return batch
        mixture = CutMix.draw(len(index), self.size, view, generator)
        classes = int(self.y.max()) + 1 if self.classes is None else self.classes
        return Batch(mixture.mix(batch.x), batch.y, index, mixture, mixture.labels(batch.y, classes))

    def _seen(self, index: Tensor, view: View) -> Batch:
        if isinstance(self.canvas, StreamedCanvas):
            x = view.read(self.canvas.rows(index), torch.arange(len(index), device=index.device))
        else:
            x = view.read(self.canvas, index)
        return Batch(_in_unit_range(x), self.y[index], index, view)


def _in_unit_range(x: Tensor) -> Tensor:
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def training_rows(arrays: Arrays, config: TrainingConfig) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the training examples that a training sees, and those that it holds out: see hold_out."""
    return hold_out(len(arrays.y_train), config.validation, config.validation_seed)


def hold_out(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random partition of n rows into rows for training and a `share` of rows for validation, both sorted."""
    order = np.random.default_rng(seed).permutation(n)
    count = min(max(1, round(n * share)), n - 1) if share > 0 else 0
    return np.sort(order[count:]), np.sort(order[:count])
