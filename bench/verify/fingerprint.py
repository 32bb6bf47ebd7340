"""Fingerprints of networks: a few numbers computed from the outputs, which identify copies with disguised weights.

Permuted or rescaled units, a moved bias and low-order noise change the weights, but hardly change the outputs. Two
trainings of one recipe agree on most test images, but not on noise, and never to several digits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.contracts import frozen
from bench.datasets.split import Split

IMAGES, NOISE = 32, 32  # the first test images; images of uniform noise
DIGITS = 4  # decimals of each number


@torch.no_grad()
def fingerprint(model: nn.Module, test: Split) -> list[float]:
    """Return the logits of test images and of noise, each centred, with both sets scaled to a root mean square of 1."""
    batch = next(test.in_order(IMAGES))
    noise = torch.from_numpy(np.random.default_rng(0).random((NOISE, *test.image_shape), dtype=np.float32))
    with frozen(model):
        parts = [_scaled(model(x)) for x in (batch.x, noise.to(batch.x.device))]
    return [round(value, DIGITS) for value in torch.cat(parts).flatten().tolist()]


def _scaled(logits: Tensor) -> Tensor:
    centred = (logits - logits.mean(dim=1, keepdim=True)).double()
    return centred / centred.square().mean().sqrt().clamp(min=1e-12)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The root mean square of the difference: 0 for a copy, near 1.4 for outputs that have nothing in common."""
    a, b = np.asarray(one), np.asarray(other)
    return float(np.sqrt(np.mean((a - b) ** 2))) if a.shape == b.shape else float("inf")
