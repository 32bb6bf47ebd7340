"""Context managers for a model's mode, whether its weights require gradients, and the precision of its products."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from bench.core.classifier import is_training


@contextmanager
def mode_of(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model into train or eval mode inside the block, and restore the mode of every module afterwards.

    Parametrized weights (of a masked or binarised layer) are computed only once inside, because they do not change.
    """
    before = [(module, is_training(module)) for module in model.modules()]
    model.train(training)
    try:
        with parametrize.cached():
            yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode without weight gradients inside the block, and restore all flags afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        with mode_of(model, training=False):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products and convolutions on GPUs in float32 inside the block: TF32 has 10 bits of precision."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
