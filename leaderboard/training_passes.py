"""The passes of a training, if they measure its work. Imports no torch.

A pass is one example through the model (bench/core/passes.py). Bounds (fast-lin, IBP, CROWN, linear regions) use the
weights without a call of the model and are not counted, so the passes of a training that computes bounds say little
about its work: KW makes nearly none.
"""

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from bench.core import registry
from bench.core.records import Record

BOUNDS_NOTE = "computes bounds, which are not counted as passes"


def comparable_passes(record: Record) -> int | None:
    """Forward and backward passes of the training; None without a training, or if it computes bounds."""
    training = record.training
    if training is None or computes_bounds(record):
        return None
    return training.forwards + training.backwards


def computes_bounds(record: Record) -> bool:
    """Whether the training computes bounds, which are not counted as passes.

    The defense decides, not the record, which is untrusted. Of a defense that is not registered here (a plugin) only
    the passes are known: a training without a backward pass in each epoch did not learn from calls of the model.
    """
    uses = _uses_certifiers(record.defense)
    if uses is None:
        return record.training is not None and record.training.backwards < record.training.epochs
    return uses


@cache
def _uses_certifiers(defense: str) -> bool | None:
    """Whether the file of a defense imports from `certifiers`; None if there is no such file.

    The file is parsed, not imported, because defenses import torch.
    """
    entry = registry.defense.entries().get(defense)
    module = "" if entry is None else entry.source.partition(":")[0]
    if module not in sys.modules and not module.startswith(f"{registry.defense.package}."):
        return None  # to find the file of another package would import it
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return any(name.partition(".")[0] == registry.certifier.package for name in names)
