"""Checks before a training: the steps of an epoch, the work of a pass, and whether the result can be saved."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.core import shares
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer, mode_of
from bench.core.errors import UserError
from bench.core.failures import failures_of
from bench.core.passes import Passes, count_passes
from bench.datasets.split import Split

MOST = 1000  # maximum number of a defense's batches per batch of the training split
IMAGES = 4  # number of images on which two networks are compared
TOLERANCE = 1e-4  # of the largest logit


class LoopToCheck(Trainer, Protocol):
    """The part of the training loop (bench/training/loop.py) that is used here."""

    config: TrainingConfig
    defense: Defense[Any]
    split: Split
    device: torch.device
    passes: Passes
    steps_per_epoch: int
    steps_done: int

    @property
    def steps(self) -> int: ...
    def undone(self) -> AbstractContextManager[None]: ...
    def train_on(self, batch: Batch) -> None: ...
    def is_probed(self) -> bool: ...
    def computed(self) -> AbstractContextManager[None]: ...


def check_precision(model: nn.Module) -> None:
    """UserError if a weight is not in float32, the precision in which models are trained."""
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_complex() or (weight.is_floating_point() and weight.dtype != torch.float32):
            raise UserError(
                f"the model's '{name}' is in {str(weight.dtype).removeprefix('torch.')}; models are trained in float32 "
                "(and computed in bfloat16 where that is faster, unless amp=off), so return model.float()"
            )


def count_batches(loop: LoopToCheck) -> int:
    """Count the batches of an epoch: those of the split, or of the defense's own `batches`, iterated once."""
    defense, batches = loop.defense, loop.split.count_batches(loop.config.batch_size)
    if type(defense).batches is Defense.batches and not loop.config.extra:
        return batches
    with loop.undone():
        found = sum(1 for _ in islice(defense.batches(loop), MOST * batches + 1))
    if not 1 <= found <= MOST * batches:
        many = "none" if not found else f"more than {MOST * batches}"
        raise UserError(f"{type(defense).__name__}.batches must give the batches of one epoch; it gives {many}")
    return found


def batches_of_an_epoch(loop: LoopToCheck) -> Iterator[Batch]:
    """Yield the defense's batches; UserError if they are more or fewer than counted before the training."""
    number = 0
    for number, batch in enumerate(loop.defense.batches(loop), start=1):
        if number > loop.steps_per_epoch:
            break
        yield batch
    if number != loop.steps_per_epoch:
        raise UserError(
            f"{type(loop.defense).__name__}.batches must give as many batches in each epoch, so that the learning rate "
            f"fits: it gave {loop.steps_per_epoch} before the training, and "
            f"{'more' if number > loop.steps_per_epoch else number} in epoch {loop.epoch + 1}"
        )


def measure_pass(loop: LoopToCheck) -> None:
    """Call the model once in train mode, so that a call of a part of it can be counted as a share of a pass."""
    x = _images(loop)
    passes, what = Passes(), f"the model in train mode, called on images of shape {tuple(x.shape)},"
    counted = count_passes(loop.model, passes)
    with loop.undone(), mode_of(loop.model, training=True), counted, torch.no_grad(), failures_of(what):
        loop.model(x)
    loop.passes.whole |= passes.whole


def check_shares(loop: LoopToCheck) -> None:
    """UserError if several processes would train differently: see Defense.divisible and bench/core/shares.py."""
    if shares.count() == 1:
        return
    name, advice = type(loop.defense).__name__, "train in one process, without torchrun"
    if not loop.defense.divisible:
        raise UserError(f"{name} looks inside the network's passes, which several processes divide; {advice}")
    x = loop.split.take(torch.arange(min(IMAGES * shares.count() + 1, len(loop.split)), device=loop.device)).x
    with loop.undone(), mode_of(loop.model, training=True), torch.no_grad():
        whole = loop.model(x).float()
    with loop.undone(), mode_of(loop.model, training=True), torch.no_grad(), loop.computed():
        divided = loop.model(x).float()
    if loop.config.norm_shares == 1 and not torch.allclose(
        whole, divided, rtol=0, atol=TOLERANCE * float(whole.abs().max())
    ):
        raise UserError(
            f"the network's logits for an image are random, or depend on the other images of a batch by other layers "
            f"than batch norm, so several processes would train another network; {advice}"
        )


def check_predictors(loop: LoopToCheck) -> None:
    """UserError if the defense's own `predictor` returns a network that cannot be rebuilt from its weights.

    This runs one batch of each epoch, and then restores the state.
    """
    defense = loop.defense
    if type(defense).predictor is Defense.predictor:
        return
    with loop.undone():
        loop.model.train()
        for epoch in range(loop.epochs):
            loop.epoch, loop.steps_done = epoch, epoch * loop.steps_per_epoch
            loop.train_on(next(iter(defense.batches(loop))))
            defense.end_epoch(loop)
            if loop.config.select == "best" and loop.is_probed():
                check_predictor(loop, defense.predictor(loop))
        loop.epoch, loop.steps_done = loop.epochs, loop.steps
        check_predictor(loop, defense.predictor(loop))


def check_predictor(loop: LoopToCheck, predictor: nn.Module) -> None:
    """UserError if the model that `build` makes, with the predictor's weights, is not the predictor."""
    if predictor is loop.model or (predictor is loop.averaged and predictor is not None):
        return
    if problem := _difference(loop, predictor):
        raise UserError(
            f"{type(loop.defense).__name__}.predictor returns a network that cannot be rebuilt from its weights "
            f"({problem}); let `build` make it, with another forward in train mode if need be"
        )


def _difference(loop: LoopToCheck, predictor: Any) -> str | None:
    """Describe how the predictor differs from the model of `build` with its weights; None if it does not."""
    if not isinstance(predictor, nn.Module):
        return f"it is a {type(predictor).__name__}"
    x = _images(loop)
    state = {key: value.clone() for key, value in predictor.state_dict().items()}
    logits = _logits(predictor, x)
    with loop.undone():
        try:
            loop.model.load_state_dict(state, strict=True)
        except RuntimeError:
            return f"it is a {type(predictor).__name__} with different weights from the model of `build`"
        rebuilt = _logits(loop.model, x)
    if logits.shape == rebuilt.shape and torch.allclose(
        logits, rebuilt, rtol=0, atol=TOLERANCE * float(rebuilt.abs().max()), equal_nan=True
    ):
        return None
    return "the model of `build` with its weights has other logits"


def _images(loop: LoopToCheck) -> Tensor:
    return loop.split.take(torch.arange(min(IMAGES, len(loop.split)), device=loop.device)).x


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with mode_of(model, training=False), torch.no_grad():
        logits: Tensor = model(x).float()
        return logits
