"""Context managers that change a model's mode and whether its weights require gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

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
