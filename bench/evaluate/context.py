"""The context that all measurements of one evaluation share."""

import zlib
from dataclasses import dataclass

from torch import nn

from bench.core.classifier import as_classifier
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.evaluate.partial_results import PartialResults


@dataclass(frozen=True)
class Shard:
    """The batches of an evaluation that one of several processes computes: every `of`-th batch of each stage.

    number: 0 to of - 1. Different stages assign their first batch to different processes, so that an evaluation of many
    stages with one batch each is divided too.
    """

    number: int
    of: int

    def has(self, stage: str, batch: int) -> bool:
        return (batch + zlib.crc32(stage.encode())) % self.of == self.number


class MissingBatches(Exception):  # noqa: N818 (a state of the work, not an error)
    """A stage cannot be finished, because batches of other shards are not stored yet."""


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """The model, the test split, the threat model of the record, and the settings of the measurements.

    model: wrapped in a Classifier, unless it is one (bench/core/classifier.py).
    batch_size: examples in a batch. It decides which examples share a batch and, with `seed`, all randomness.
    partial_results: where finished batches are stored and read by a later call; None stores nothing.
    shard: compute only these batches, and read the others from partial_results; None for all.
    """

    model: nn.Module
    test: Split
    threat: ThreatModel
    batch_size: int
    seed: int
    partial_results: PartialResults | None = None
    show_progress: bool = False
    shard: Shard | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_classifier(self.model))
