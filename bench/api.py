"""What a plugin may import, in one place: the contracts, what training shares, and `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import (
    Attack,
    Batch,
    Certificate,
    Certifier,
    Defense,
    Trainer,
    frozen,
    mode_of,
)
from bench.core.errors import CheckError, UserError
from bench.core.specs import Length, OfEps, in_units
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.evaluate.attacked import make_attacks
from bench.evaluate.evaluation import Evaluation, evaluate_split
from bench.training.carried import carried_start, carry, start_bank

__all__ = [
    "Arrays",
    "Attack",
    "Batch",
    "Certificate",
    "Certifier",
    "CheckError",
    "Defense",
    "Evaluation",
    "Length",
    "OfEps",
    "Split",
    "ThreatModel",
    "Trainer",
    "TrainingConfig",
    "UserError",
    "carried_start",
    "carry",
    "evaluate",
    "frozen",
    "in_units",
    "mode_of",
    "registry",
    "start_bank",
]


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    attacks: Sequence[str] = ("pgd-10", "pgd-50", "autoattack"),
    seed: int = 0,
    batch_size: int = 256,
) -> Evaluation:
    """Attack `model` on images x (N,C,H,W) in [0, 1] with labels y (N,), as `bench eval` would.

    attacks are specs. The table of the result says of each example whether it is right and what it survives.
    UserError for images outside [0, 1] or labels of another length.
    """
    if x.dim() != 4 or not x.is_floating_point() or x.min() < 0 or x.max() > 1:
        raise UserError("evaluate takes images (N,C,H,W) of floating point in [0, 1]; put a normalisation in the model")
    if y.shape != (len(x),) or y.dtype != torch.int64:
        raise UserError(f"evaluate takes {len(x)} labels of type int64, not {tuple(y.shape)} of {y.dtype}")
    test = Split.of_tensors(x.float(), y)
    return evaluate_split(
        model, test, threat, make_attacks(attacks, threat), batch_size=batch_size, seed=seed, show=False
    )
