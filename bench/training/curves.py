"""Loss and error on training and test examples, clean and under PGD, after each epoch: for `bench study curves`."""

from __future__ import annotations

import itertools
import warnings

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.core import registry, seeds
from bench.core.attack_specs import make_attacks
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.training.probe import PROBE_STEPS, Probe, spread_rows

SPLITS, POINTS, KINDS = ("train", "test"), ("clean", "robust"), ("loss", "error")
KEYS = tuple("_".join(parts) for parts in itertools.product(SPLITS, POINTS, KINDS))


def make_curves(train: Split, test: Split, threat: ThreatModel, n: int) -> Probe:
    """A probe with the values of KEYS on n examples of both splits, always the same ones.

    The attack is PGD with all of its steps on every example, always with the same seed. If PGD does not support the
    norm, only clean values are measured.
    """
    attack = None
    if threat.norm in registry.attack.get("pgd").norms:
        (attack,) = make_attacks([f"pgd:steps={PROBE_STEPS}:stop_when_misclassified=false"], threat).values()

    def curves(model: nn.Module) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, split in zip(SPLITS, (train, test), strict=True):
            index = spread_rows(split, n)
            for points in POINTS if attack is not None else POINTS[:1]:
                loss = wrong = 0.0
                for rows in index.split(256):
                    batch = split.take(rows)
                    x = batch.x
                    if points == "robust" and attack is not None:
                        generator = seeds.generator(rows.device, 0, "curves")
                        with warnings.catch_warnings(action="ignore"):  # the evaluation gives the same warnings
                            x = attack.attack(model, batch, attack.threat, generator=generator)
                    with torch.no_grad():
                        logits = model(x).float()
                    loss += float(cross_entropy(logits, batch.y, reduction="sum"))
                    wrong += float((logits.argmax(dim=1) != batch.y).sum())
                values[f"{name}_{points}_loss"] = round(loss / len(index), 6)
                values[f"{name}_{points}_error"] = round(wrong / len(index), 6)
        return values

    return curves
