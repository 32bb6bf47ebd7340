"""Symptoms of a training that fails: units that never fire, one class for all images, catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.training.overfitting import has_collapsed

DEAD, ONE_CLASS = "dead", "one_class"  # keys of a probe beside its accuracies
MANY_DEAD = 0.9  # share of dead units in a layer from which there is a warning


class FiredUnits:
    """Which ReLU units have been positive: a unit is a channel of a convolution or an output of a linear layer."""

    def __init__(self) -> None:
        self.fired: dict[tuple[str, int], Tensor] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Count the passes of the block. Only modules `nn.ReLU` are seen, not calls of torch's functions."""
        handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in model.named_modules() if isinstance(module, nn.ReLU)
        ]  # fmt: skip
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def see(_: nn.Module, inputs: Any, output: Tensor) -> None:
            fired = (output > 0).transpose(0, 1).flatten(1).any(dim=1)
            key = (name, len(fired))  # a module may be used at several places
            self.fired[key] = self.fired[key] | fired if key in self.fired else fired

        return see

    def dead_shares(self) -> dict[str, float]:
        """The share of units that were never positive, by layer."""
        return {name: 1 - float(fired.float().mean()) for (name, _), fired in self.fired.items()}

    @property
    def most_dead(self) -> float:
        """The largest share of a layer; 0 for a model without ReLUs."""
        return max(self.dead_shares().values(), default=0.0)


def share_of_one_class(predictions: Tensor) -> float:
    """The share of the class that is predicted most often, for predictions (N,)."""
    return float(torch.bincount(predictions).max()) / len(predictions)


def warnings_of(log: Sequence[Mapping[str, Any]], probed: Mapping[str, float], epoch: int, *, last: bool) -> list[str]:
    """Return warnings from the probe of an epoch (counted from 1); `log` holds the earlier epochs.

    Without the keys DEAD and ONE_CLASS in the probe, units and classes are not checked. They are only checked for the
    trained network, because many trainings begin as a constant classifier.
    """
    found = []
    history = [(line["fgsm"], line["pgd"]) for line in [*log, probed] if "pgd" in line]
    if has_collapsed(history):
        found.append(
            f"catastrophic overfitting in epoch {epoch}: PGD accuracy {probed['pgd']:.1%}, "
            f"one-step accuracy {probed['fgsm']:.1%}"
        )
    if last and probed.get(ONE_CLASS, 0.0) == 1:
        found.append(
            "the trained network predicts one class for all probed images: a constant classifier; "
            "try a smaller eps, a growing one (eps_growth), or another learning rate"
        )
    if last and probed.get(DEAD, 0.0) >= MANY_DEAD:
        found.append(f"{probed[DEAD]:.0%} of the ReLU units of one layer are 0 on all probed images (dead units)")
    return found
