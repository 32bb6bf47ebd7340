"""Robust accuracy on a few examples during a training, for its log and for the choice of the best epoch."""

import warnings
from collections.abc import Callable

import torch
from torch import nn

from bench.core import registry, seeds
from bench.core.attack_specs import make_attacks
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.training.symptoms import DEAD, ONE_CLASS, FiredUnits, share_of_one_class

# a model -> {"fgsm": accuracy, "pgd": accuracy}, and the symptoms of bench/training/symptoms.py
Probe = Callable[[nn.Module], dict[str, float]]
PROBE_STEPS = 10


def spread_rows(split: Split, n: int) -> torch.Tensor:
    """The indices (n,) of examples at equal distances, all if there are fewer: data may be sorted by class."""
    n = min(n, len(split))
    return torch.arange(n, device=split.y.device) * len(split) // n


def make_probe(split: Split, threat: ThreatModel, n: int | None) -> Probe | None:
    """FGSM and PGD-10 accuracy on n examples of a split (None: all), always the same ones, with the same seed.

    On the attacked images of both, the largest share of dead units of a layer, and of one class among the predictions.
    None if PGD does not support the norm.
    """
    if threat.norm not in registry.attack.get("pgd").norms:
        return None
    index = spread_rows(split, n or len(split))
    attacks = make_attacks(["fgsm", f"pgd:steps={PROBE_STEPS}"], threat)

    def probe(model: nn.Module) -> dict[str, float]:
        accuracies, activity, predictions = dict[str, float](), FiredUnits(), list[torch.Tensor]()
        for spec, planned in attacks.items():
            correct = 0
            for rows in index.split(256):
                batch = split.take(rows)
                generator = seeds.generator(rows.device, 0, "probe")
                with warnings.catch_warnings(action="ignore"):  # the evaluation of the finished model repeats them
                    x_adv = planned.attack(model, batch, planned.threat, generator=generator)
                with torch.no_grad(), activity.watching(model):
                    predictions.append(model(x_adv).argmax(dim=1))
                correct += int((predictions[-1] == batch.y).sum())
            accuracies[spec.partition(":")[0]] = correct / len(index)
        return accuracies | {DEAD: activity.most_dead, ONE_CLASS: share_of_one_class(torch.cat(predictions))}

    return probe
