"""Do the parts of a request go together? UserError where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Attack, Certifier, Defense
from bench.core.errors import UserError
from bench.core.example_table import BRACKET
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import hold_out
from bench.training.checkpoints import BuildSpec


def check_own(own: BuildSpec, checkpoint: Path | None, model: str | None, arrays: Arrays) -> None:
    """UserError where our own weights are of other images than the data set's, or of another model than --model."""
    if (own.shape, own.classes) != (arrays.shape, arrays.classes):
        raise UserError(
            f"checkpoint {checkpoint} is of images {own.shape} with {own.classes} classes; {arrays.name} has "
            f"{arrays.shape} with {arrays.classes}; give its data set (--dataset)"
        )
    if model not in (None, own.model):
        raise UserError(f"checkpoint {checkpoint} holds a {own.model}; leave out --model {model}")


def check_names(attacks: Mapping[str, Attack], certifiers: Mapping[str, Certifier]) -> None:
    """UserError where a witness could not say by its maker's name who made it."""
    taken = (set(attacks) & set(certifiers)) | ({BRACKET} & {*attacks, *certifiers})
    if taken:
        raise UserError(f"'{min(taken)}' names two things of one run; register the attack or certifier by another name")


def check_training(defense: Defense[Any], arrays: Arrays, threat: ThreatModel) -> None:
    """UserError where a defense cannot train on this data against this threat."""
    config: TrainingConfig = defense.config
    if threat.norm not in defense.norms:
        raise UserError(f"{type(defense).__name__} has no {threat.norm} form; its norms are {', '.join(defense.norms)}")
    if config.crop > min(arrays.shape[1:]):
        raise UserError(f"crop is {config.crop}; it must not be larger than a side of the images {arrays.shape}")
    if len(hold_out(len(arrays.y_train), config.validation, config.validation_seed)[0]) < 2:
        raise UserError(f"{arrays.name} leaves fewer than 2 training examples; lower validation={config.validation}")
    if config.select == "best" and threat.norm == "L1":
        raise UserError("select=best measures PGD accuracy, and there is no PGD under L1; use select=last")


def check_model(model: nn.Module, arrays: Arrays, text: str) -> None:
    """UserError where a model does not take the data set's images or has another number of classes."""
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *arrays.shape))
    except Exception as error:  # a model may be anybody's
        raise UserError(
            f"model '{text}' does not take the images of {arrays.name}, {arrays.shape} ({registry.one_line(error)}); "
            "give another --model"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, arrays.classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"model '{text}' returns {shape} for two images of {arrays.classes} classes; it must be logits")
