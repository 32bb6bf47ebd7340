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

    UserError if the images or labels do not fit the trainer's model.
    """

    def __init__(self, config: TrainingConfig, trainer: Trainer) -> None:
        self.config, path = config, Path(config.extra)
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
        """Yield the batches of an epoch: each training example once, in batches filled up with examples of the file.

        The batches are as large as without the file, so there are more of them. The file's examples are in random
        order, and none is repeated before all were used. Batches have no view, and the file's examples the index -1.
        """
        extra, share = self.split, self.config.extra_share
        own = max(1, round(self.config.batch_size * (1 - share)))
        order = torch.randperm(len(extra), generator=generator, device=extra.y.device)
        used = 0
        for batch in batches:
            for rows in torch.arange(len(batch), device=batch.y.device).split(own):
                n = max(1, round(len(rows) * share / (1 - share)))
                places = torch.arange(used, used + n, device=order.device) % len(order)
                other = extra.augmented(order[places], generator)
                used += n
                index = torch.cat([batch.index[rows], torch.full_like(other.index, -1)])
                yield Batch(torch.cat([batch.x[rows], other.x]), torch.cat([batch.y[rows], other.y]), index)


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
