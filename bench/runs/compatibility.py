"""Checks that the parts of a request fit together. Each raises UserError if they do not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.attack_specs import PlannedAttack
from bench.core.config import TrainingConfig
from bench.core.contracts import Certifier, Defense, frozen
from bench.core.errors import UserError
from bench.core.example_table import BRACKET
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import training_rows
from bench.training.checkpoints import BuildSpec


def check_checkpoint(spec: BuildSpec, checkpoint: Path, model: str | None, arrays: Arrays) -> None:
    """Check that our own checkpoint fits the data set's images and classes, and the model of --model."""
    if (spec.shape, spec.classes) != (arrays.shape, arrays.classes):
        raise UserError(
            f"checkpoint {checkpoint} is for images {spec.shape} with {spec.classes} classes; {arrays.name} has "
            f"{arrays.shape} with {arrays.classes}; give its data set with --dataset"
        )
    if model not in (None, spec.model):
        raise UserError(f"checkpoint {checkpoint} holds a {spec.model}; leave out --model {model}")


def check_distinct_names(attacks: Mapping[str, PlannedAttack], certifiers: Mapping[str, Certifier]) -> None:
    """Check that no name is used twice, so that the source of each witness is clear."""
    taken = (set(attacks) & set(certifiers)) | ({BRACKET} & {*attacks, *certifiers})
    if taken:
        raise UserError(f"'{min(taken)}' names two things of one run; register one under another name")


def check_training(defense: Defense[Any], arrays: Arrays, threat: ThreatModel) -> None:
    """Check that the defense can be trained on this data against this threat model."""
    config: TrainingConfig = defense.config
    if threat.norm not in defense.norms:
        raise UserError(f"{type(defense).__name__} supports {', '.join(defense.norms)}, not {threat.norm}")
    for name in ("awp", "label_smoothing", "cutmix", "extra"):
        if getattr(config, name) and name not in defense.supported_settings:
            raise UserError(f"{type(defense).__name__} does not take {name}; leave it out, or use pgd-at or trades")
    if config.cutout > min(arrays.shape[1:]):
        raise UserError(f"cutout is {config.cutout}; it must not exceed a side of the images {arrays.shape}")
    if config.crop > min(arrays.shape[1:]):
        raise UserError(f"crop is {config.crop}; it must not exceed a side of the images {arrays.shape}")
    examples = len(training_rows(arrays, config)[0])
    if examples < 2:
        raise UserError(f"{arrays.name} leaves fewer than 2 training examples; lower validation={config.validation}")
    last = examples % config.batch_size
    if config.norm_shares > 1 and not config.extra and 1 < last < 2 * config.norm_shares:
        raise UserError(
            f"norm_shares is {config.norm_shares}, but the last batch of an epoch has {last} examples, and each share "
            "needs two; choose another batch_size"
        )
    if config.select == "best" and threat.norm == "L1":
        raise UserError("select=best needs PGD accuracy, and PGD does not support L1; use select=last")


def check_model(model: nn.Module, arrays: Arrays, text: str) -> None:
    """Check that the model accepts the data set's images and returns logits of its classes."""
    try:
        with frozen(model), torch.no_grad():
            logits = model(torch.zeros(2, *arrays.shape))
    except Exception as error:  # the model may come from a plugin
        raise UserError(
            f"model '{text}' does not accept the images of {arrays.name}, {arrays.shape} ({registry.one_line(error)}); "
            "give another --model"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, arrays.classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"model '{text}' returns {shape} for 2 images; it must return logits (2, {arrays.classes})")


def check_rebuilt(model: nn.Module, other: nn.Module, arrays: Arrays, text: str) -> None:
    """Check that the weights determine the model: with them, `other`, built with another seed, has the same logits."""
    images = torch.rand(2, *arrays.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, again = model.eval()(images), model(images)
        try:
            other.load_state_dict(model.state_dict(), strict=True)
            rebuilt = other.eval()(images)
        except RuntimeError as error:
            reason = registry.one_line(error)
            raise UserError(f"model '{text}' has other weights each time it is built ({reason})") from error
    deterministic = torch.equal(logits, again)
    if deterministic and not torch.allclose(logits, rebuilt, atol=1e-4 * float(logits.abs().max()), equal_nan=True):
        raise UserError(
            f"model '{text}' cannot be rebuilt from its weights: something else is random; make it a parameter, or "
            "a buffer by register_buffer"
        )
