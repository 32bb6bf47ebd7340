"""The part of the training loop that a defense may use."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Generator, Tensor, nn

from bench.core.batches import Batch
from bench.core.threat import ThreatModel


class Trainer(Protocol):
    """The part of the training loop that a defense may use (bench/training/loop.py).

    A step is one batch of `Defense.batches`, and an epoch is one pass through them.
    """

    model: nn.Module
    """Images (B,C,H,W) in [0,1] -> logits (B,K). It is in train mode during train_step."""

    generator: Generator
    """The only source of random numbers, on the device of the model. Its state is saved in the checkpoint."""

    bank: dict[str, Tensor]
    """State for each training example, (N,) or (N,C,H+2p,W+2p), by name. It is saved in the checkpoint."""

    log: list[dict[str, Any]]
    """A line for each finished epoch: `epoch`, `loss` and, after a probe, the accuracies `fgsm` and `pgd`."""

    epoch: int
    """The number of finished epochs."""

    epochs: int
    """The number of epochs of the whole training."""

    @property
    def progress(self) -> float:
        """The fraction of the steps that are done: 0 in the first step, below 1 in the last one."""

    @property
    def averaged(self) -> nn.Module | None:
        """The weight average (ema, swa); None without one, or before the first one of swa."""

    @property
    def eps(self) -> float:
        """The eps of the threat model, in the scale of images in [0, 1]; a setting may let it grow (eps_growth)."""

    @property
    def lr(self) -> float:
        """The learning rate of this step."""

    @property
    def threat(self) -> ThreatModel:
        """The threat model to train for."""

    @property
    def examples(self) -> int:
        """N, the number of training examples."""

    @property
    def canvas(self) -> tuple[int, ...]:
        """(N,C,H+2p,W+2p), the shape of a bank that holds one value per pixel of the images padded by p = crop."""

    def shuffled(self) -> Iterator[Batch]:
        """The batches of one epoch: the training split in random order, augmented."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss to the weights' gradients."""

    def step(self) -> None:
        """Update the weights with the gradients so far, then set these to zero."""

    def update(self, loss: Tensor | Callable[[], Tensor]) -> None:
        """Call backward, then step. If `loss` is a function, the loop computes it at perturbed weights (awp)."""

    def ends_at(self, *fractions: float) -> bool:
        """Whether the epoch that ends now, in `end_epoch`, ends at one of these fractions of the training.

        Fractions are rounded to whole epochs; a fraction that is rounded to zero epochs adds a warning to the record.
        """

    def warn(self, message: str) -> None:
        """Add a warning to the record of the training, unless it is there already."""
