"""Shared code of the adversarial training studies: data, networks, trainings at several eps and on subsets, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks.ascent import ascend
from bench.core import registry, seeds
from bench.core.config import make_config
from bench.core.contracts import Batch, frozen, mode_of
from bench.core.threat import Norm, ThreatModel
from bench.datasets.arrays import Arrays
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.studies.claims import Claim, ClaimsStudy, Floats, Interval, effect_claim
from bench.training.checkpoints import BuildSpec
from bench.training.loop import Loop
from bench.training.rebuild import new_model

CPU = torch.device("cpu")
DataName = Literal["digits", "mnist"]
DIGITS: DataName = "digits"
ATTACK_STEPS = 10  # of the PGD attack that measures the error
FITTED = 0.1  # share of the training examples that a fitted network may get wrong
CHUNK = 1000  # images attacked at a time
MODELS: dict[DataName, str] = {"digits": "small-cnn:width=8:hidden=64", "mnist": "lenet:width=2"}
# A LeNet of width 2 cannot fit the hardest examples of MNIST, and often ends as a constant classifier. This one fits.
FITTING: dict[DataName, tuple[str, dict[str, Any]]] = {
    "digits": (MODELS["digits"], {}), "mnist": ("lenet:width=4", {"lr": 2e-3}),
}  # fmt: skip
# On CPUs, passes of a LeNet with few channels take a third of the time in this layout; those of the small CNN do not.
LAYOUT: dict[DataName, dict[str, Any]] = {"digits": {}, "mnist": {"layout": "channels_last"}}
SETTINGS: Mapping[str, Any] = {
    "crop": 0, "flip": False, "probe_every": 0, "batch_size": 64, "optimizer": "adam", "lr": 5e-3, "weight_decay": 0.0,
    "schedule": "constant", "amp": "off",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Data and network. settings: override the defense's defaults in every training."""

    arrays: Arrays
    model: str
    norm: Norm = "Linf"
    settings: Mapping[str, Any] = field(default_factory=lambda: SETTINGS)

    def threat(self, eps: float) -> ThreatModel:
        return ThreatModel(self.norm, eps)

    def first(self, train: int, test: int) -> Task:
        """The task with the first examples only."""
        a = self.arrays
        few = Arrays(a.name, a.x_train[:train], a.y_train[:train], a.x_test[:test], a.y_test[:test])
        return Task(few, self.model, self.norm, self.settings)

    def train_split(self, rows: Any = slice(None)) -> Split:
        return Split(self.arrays.x_train[rows], self.arrays.y_train[rows], CPU)

    def test_split(self) -> Split:
        return Split.test(self.arrays, CPU)

    def loop(
        self,
        defense: str,
        *,
        eps: float,
        seed: int,
        rows: Any = slice(None),
        kind: type[Loop] = Loop,
        **settings: Any,
    ) -> Loop:
        """A training loop (a `kind`) before its start, on `rows` of the training examples; at eps 0 it is `standard`.

        Its weights and random numbers depend only on the seed. settings: override those of the task.
        """
        name = defense if eps > 0 else "standard"
        target = registry.defense.get(name)
        config = make_config(target.config_class, name, self.settings, settings)
        spec = BuildSpec(
            model=self.model, shape=self.arrays.shape, classes=self.arrays.classes, defense=None, training={}
        )
        trained = target(config)
        model = trained.build(new_model(spec, seed))
        return kind(model, trained, self.train_split(rows), self.threat(max(eps, 1e-6)), seed=seed)


def task_of(dataset: DataName, data_dir: str | None, norm: Norm = "Linf", *, fits: bool = False) -> Task:
    """The task of a data set. fits: with a network that can fit the hardest training examples."""
    model, settings = FITTING[dataset] if fits else (MODELS[dataset], {})
    arrays = load_arrays(dataset, Path(data_dir) if data_dir else None)
    return Task(arrays, model, norm, {**SETTINGS, **LAYOUT[dataset], **settings})


@dataclass(frozen=True, kw_only=True)
class TrainingStudy(ClaimsStudy):
    """A study that trains networks on images."""

    dataset: DataName = DIGITS  # digits is embedded; mnist takes minutes to hours
    data_dir: str | None = None  # folder with mnist.npz; none: BENCH_DATA, else a download


def trained(loop: Loop) -> nn.Module:
    """Finish the training and return the network in eval mode."""
    model, _ = loop.run()
    return model


def attacked(
    model: nn.Module, batch: Batch, threat: ThreatModel | None, seed: int, steps: int = ATTACK_STEPS
) -> Tensor:
    """PGD from a uniform start with steps of 2.5 eps / steps; FGSM if `steps` is 1.

    Without a threat model, the clean images.
    """
    if threat is None:
        return batch.x
    assert isinstance(threat.eps, float)
    start, alpha = threat.random_start(batch.x, seeds.generator(CPU, seed, "study")), 2.5 * threat.eps / steps
    if steps == 1:
        start, alpha = batch.x, threat.eps
    with frozen(model):
        return ascend(model, batch.x, batch.y, threat=threat, steps=steps, alpha=alpha, start=start)


@dataclass(frozen=True)
class Measured:
    """The loss (N,) and whether it is misclassified (N,) for each example of a split, both under attack."""

    loss: Tensor
    wrong: Tensor

    @property
    def error(self) -> float:
        return float(self.wrong.float().mean())


def measure(
    model: nn.Module, split: Split, threat: ThreatModel | None, seed: int = 0, steps: int = ATTACK_STEPS
) -> Measured:
    """Loss and error of each example under `attacked`."""
    losses, wrong = [], []
    with mode_of(model, training=False):
        for batch in split.in_order(CHUNK):
            x = attacked(model, batch, threat, seed, steps)
            with torch.no_grad():
                logits = model(x)
            losses.append(cross_entropy(logits, batch.y, reduction="none"))
            wrong.append(logits.argmax(dim=1) != batch.y)
    return Measured(torch.cat(losses), torch.cat(wrong))


def if_fitted(claim: str, measured: str, effect: Interval, errors: Floats) -> Claim:
    """The verdict on an effect of fitting hard examples; it is not tested if the networks do not fit them.

    errors: final training error rates under attack, of any shape whose last axis is the seeds; the largest mean over
    the seeds decides.
    """
    if (worst := float(errors.mean(axis=-1).max())) > FITTED:
        text = f"{measured}; the training examples are not fitted, with a robust error of up to {100 * worst:.3g} %"
        return Claim(claim, text, "not tested at this size")
    return effect_claim(claim, f"{measured}; robust training error at most {100 * worst:.3g} %", effect)


def class_balanced(order: np.ndarray, y: np.ndarray, count: int) -> np.ndarray:
    """The first rows of `order` of each class: `count` in total, rounded down so that classes have equal size."""
    classes = int(y.max()) + 1
    parts = [order[y[order] == k][: count // classes] for k in range(classes)]
    return np.sort(np.concatenate(parts))
