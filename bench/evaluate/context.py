"""What the measurements of one evaluation have in common."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bench.core.classifier import as_classifier
from bench.core.threat import ThreatModel
from bench.datasets.split import Split


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """The model, the test split, the threat model of the record, and how they are measured.

    model: becomes a Classifier, if it is none (bench/core/classifier.py).
    batch_size: examples in a batch. It decides which examples share a batch and, with `seed`, all randomness.
    partial_results: a folder where finished batches are stored and read by a later call; None stores nothing.
    identity: of the evaluation, stored with them; those of another one are not used.
    """

    model: nn.Module
    test: Split
    threat: ThreatModel
    batch_size: int
    seed: int
    partial_results: Path | None = None
    identity: str = ""
    show_progress: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_classifier(self.model))
