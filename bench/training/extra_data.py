"""Additional training data from an .npz, which fills a share of each batch."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from bench.core.batches import Batch
from bench.core.config import TrainingConfig
from bench.core.contracts import Trainer
from bench.core.errors import UserError
from bench.core.files import read_arrays
from bench.datasets.arrays import check_images, check_labels
from bench.datasets.split import Split


class ExtraData:
    """x_extra uint8 (N,H,W,C) and y_extra (N,) of the file `extra`, augmented as the training data.

    own: the number of training examples in a batch. UserError if the images or labels do not fit the trainer's model.
    """

    def __init__(self, config: TrainingConfig, trainer: Trainer) -> None:
        self.config, path = config, Path(config.extra)
        self.own = round(config.batch_size * (1 - config.extra_share))
        if self.own < 2:
            raise UserError(
                f"extra_share={config.extra_share} leaves {self.own} training examples in a batch of "
                f"{config.batch_size}; at least 2 are needed"
            )
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        self.split = _read(path, changed, trainer.generator.device, (config.crop, config.flip, config.cutout))
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        extra, file = self.split, self.config.extra
        _, channels, *padded = trainer.canvas
        shape = (channels, *(side - 2 * self.config.crop for side in padded))
        if extra.image_shape != shape:
            raise UserError(f"{file}: images {extra.image_shape}; those of the training data are {shape}")
        with torch.no_grad():
            classes = trainer.model.eval()(extra.take(extra.y[:2] * 0).x).shape[1]
        if int(extra.y.max()) >= classes:
            raise UserError(f"{file}: y_extra has the label {int(extra.y.max())}; it must be below {classes}")

    def mixed(self, batches: Iterator[Batch], generator: torch.Generator) -> Iterator[Batch]:
        """Fill up batches of `own` training examples, (own,), to the batch size with examples of the file.

        The file's examples are in a random order in each epoch, which repeats if they are fewer than needed. Batches
        have no view, and the file's examples the index -1. A last, smaller batch has the same share of them.
        """
        extra, added = self.split, max(1, self.config.batch_size - self.own)
        order = torch.randperm(len(extra), generator=generator, device=extra.y.device)
        used = 0
        for batch in batches:
            n = max(1, round(len(batch) * added / self.own))
            places = torch.arange(used, used + n, device=order.device) % len(order)
            other = extra.augmented(order[places], generator)
            used += n
            index = torch.cat([batch.index, torch.full_like(other.index, -1)])
            yield Batch(torch.cat([batch.x, other.x]), torch.cat([batch.y, other.y]), index)


@lru_cache(maxsize=1)
def _read(path: Path, changed: int, device: torch.device, augmentation: tuple[int, bool, int]) -> Split:
    """changed: the modification time, so that a changed file is read again."""
    arrays = read_arrays(path)
    if missing := [key for key in ("x_extra", "y_extra") if key not in arrays]:
        raise UserError(f"{path}: {', '.join(missing)} missing; additional data are x_extra and y_extra")
    x = check_images(f"{path}: x_extra", arrays["x_extra"])
    y = check_labels(f"{path}: y_extra", arrays["y_extra"], len(x))
    crop, flip, cutout = augmentation
    return Split(x, y, device, crop=crop, flip=flip, cutout=cutout)
