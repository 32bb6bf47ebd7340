"""Loads images from files to the device, batch by batch."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from bench.core.shares import all_rows_read, rows_to_read
from bench.datasets.image_files import ImageFiles


class StreamedCanvas:
    """ImageFiles as a tensor uint8 (N,3,H+2p,W+2p) of images padded by p zeros, which reads only the rows asked for."""

    def __init__(self, files: ImageFiles, pad: int, device: torch.device) -> None:
        self.files, self.pad, self.device = files, pad, device
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[list[int], Future[Tensor]] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        side = self.files.size + 2 * self.pad
        return (len(self.files), 3, side, side)

    def rows(self, index: Tensor) -> Tensor:
        """The images (B,3,H+2p,W+2p) of the rows `index`. Each process of a joint training reads its share of them."""
        rows, ahead = rows_to_read(index).tolist(), self._ahead
        images = ahead[1].result() if ahead is not None and ahead[0] == rows else self._read(rows)
        return zero_pad(all_rows_read(images.to(self.device), index), [self.pad] * 4)

    def read_ahead(self, index: Tensor) -> None:
        """Start to read the rows that the next call of `rows` will ask for."""
        rows = rows_to_read(index).tolist()
        self._ahead = (rows, self._reader.submit(self._read, rows))

    def _read(self, rows: list[int]) -> Tensor:
        return torch.from_numpy(self.files.read(rows)).permute(0, 3, 1, 2)
