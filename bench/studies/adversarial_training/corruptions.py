"""`bench study corruptions`: which test images are hard under common corruptions, and which trainings are accurate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from bench.core import registry, seeds
from bench.core.example_table import SEVERITIES
from bench.core.progress import Progress
from bench.core.threat import ThreatModel
from bench.datasets.corruption_sources import CorruptionSource, corruption_sources
from bench.datasets.split import Split
from bench.studies.adversarial_training.adversarial_runs import ATTACK_STEPS, Task, TrainingStudy, measure, task_of
from bench.studies.adversarial_training.difficulty import KINDS, Plan, distances_of
from bench.studies.adversarial_training.instance_difficulty import History
from bench.studies.claims import Findings, Floats, Table, effect_claim, mean_interval, rank_correlation
from bench.training.loop import Loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST = 1000  # test images, at most
OWN = "own images"  # the test images treated like the training images: clean, under FGSM, under PGD

PLANS = {
    ("digits", True): Plan(720, 3, 12, 0.2, {"steps": 3, "alpha": "0.5eps"}, ""),
    ("digits", False): Plan(1437, 10, 50, 0.2, {"steps": 10}, ""),
    ("mnist", True): Plan(5000, 3, 8, 0.2, {"steps": 5, "alpha": "0.4eps"}, ""),
    ("mnist", False): Plan(60_000, 4, 20, 0.2, {"steps": 10}, ""),
}
# Table 4.4 of the thesis: D-distances of clean, FGSM and PGD trainings from a corruption, ResNet18 on CIFAR-10-C
PRINTED = {
    "brightness": (0.1279, 0.1303, 0.1873), "contrast": (0.3219, 0.3128, 0.3082),
    "defocus_blur": (0.2646, 0.2642, 0.2616), "elastic_transform": (0.2115, 0.2098, 0.2319),
    "fog": (0.2324, 0.2289, 0.2414), "gaussian_blur": (0.3069, 0.3064, 0.2959), "glass_blur": (0.2809, 0.2760, 0.2825),
    "jpeg_compression": (0.1838, 0.1853, 0.2026), "motion_blur": (0.2520, 0.2520, 0.2605),
    "pixelate": (0.2365, 0.2417, 0.2551), "gaussian_noise": (0.2999, 0.2918, 0.2980),
    "impulse_noise": (0.2869, 0.2807, 0.2866), "saturate": (0.1335, 0.1329, 0.1932),
    "shot_noise": (0.2832, 0.2754, 0.2841), "snow": (0.2033, 0.2003, 0.2148), "spatter": (0.1930, 0.1946, 0.2297),
    "zoom_blur": (0.2654, 0.2657, 0.2711), "speckle_noise": (0.2829, 0.2759, 0.2901),
}  # fmt: skip


class Trained(NamedTuple):
    """One training: the history of the test images by corruption, and for OWN. Accuracies are 1 - wrong."""

    histories: dict[str, History]

    def accuracy(self, name: str) -> float:
        """Accuracy after the last epoch, on a corruption (all severities) or on OWN."""
        return float(1 - self.histories[name].wrong[:, -1].mean())


@registry.study("corruptions")
@dataclass(frozen=True, kw_only=True)
class CorruptionsStudy(TrainingStudy):
    """Difficulty of test images under 18 common corruptions, and accuracy under them after adversarial training.

    Thesis, section 4.3.1, Table 4.4: D-distances between two difficulties (Eq. 4.30): that of images under a
    corruption, in a clean training, and that of clean images or images under FGSM or PGD, in a training of the same
    kind. The difficulty is the rank of the mean loss over the epochs, and here also over the five severities, because
    the thesis does not say which one it used. The thesis has ResNet18 on CIFAR-10-C; this study uses small networks on
    digits or MNIST, whose grey images have no `saturate`. The last table is about section 6.2: whether adversarial
    training helps against common corruptions.
    """

    def findings(self) -> Findings:
        plan, found = PLANS[self.dataset, self.small], Findings(inches=(9, 5))
        task = task_of(self.dataset, self.data_dir).first(plan.train, TEST)
        sources = [each for each in corruption_sources(["all"], task.arrays, None) if each.name in PRINTED]
        splits = {source.name: corrupted_split(task, source) for source in sources}
        runs: dict[str, list[Trained]] = {kind: [] for kind in KINDS}
        with Progress("corruptions", plan.seeds * len(runs), "training") as progress:
            for seed in range(plan.seeds):
                for kind, each in runs.items():
                    each.append(self.trained(plan, task, splits, kind, seed))
                    progress.advance(1, kind)
        table_4_4(plan, runs, list(splits), found)
        accuracies(plan, runs, list(splits), found)
        return found

    def trained(self, plan: Plan, task: Task, splits: Mapping[str, Split], kind: str, seed: int) -> Trained:
        """Train, and record after each epoch the losses of the test images under each corruption and the attack."""
        loop = task.loop(
            KINDS[kind], eps=plan.eps, seed=seeds.derive(self.seed, "corruptions", seed), epochs=plan.epochs,
            **(plan.attack if kind == "PGD" else {}),
        )  # fmt: skip
        epochs = [self._after_epoch(loop, task.test_split(), splits, kind) for _ in range(plan.epochs)]
        names = list(epochs[0])
        return Trained({name: History(*np.stack([epoch[name] for epoch in epochs], axis=2)) for name in names})

    def _after_epoch(self, loop: Loop, test: Split, splits: Mapping[str, Split], kind: str) -> dict[str, Floats]:
        """Loss and error (2,N) of each test image by corruption, the mean over the severities."""
        loop.run_epoch()
        threat: ThreatModel | None = loop.threat if kind != "clean" else None
        own = measure(loop.model, test, threat, self.seed, steps=1 if kind == "FGSM" else ATTACK_STEPS)
        measured = {OWN: torch.stack([own.loss, own.wrong.float()])}
        for name, split in splits.items():
            each = measure(loop.model, split, None)
            measured[name] = torch.stack([each.loss, each.wrong.float()]).reshape(2, len(SEVERITIES), -1).mean(dim=1)
        return {name: values.double().numpy() for name, values in measured.items()}


def corrupted_split(task: Task, source: CorruptionSource) -> Split:
    """The test images under one corruption, of severity 1, then 2, ... (5 N)."""
    test = task.test_split()
    batch = test.take(torch.arange(len(test)))
    x = torch.cat([source.images(batch, severity, len(test)) for severity in SEVERITIES])
    return Split.of_tensors(x, batch.y.repeat(len(SEVERITIES)))


def table_4_4(plan: Plan, runs: Mapping[str, list[Trained]], names: list[str], found: Findings) -> None:
    own = {kind: [each.histories[OWN] for each in runs[kind]] for kind in KINDS}
    under = {name: [each.histories[name] for each in runs["clean"]] for name in names}
    distances = {(kind, name): distances_of(own[kind], under[name]) for kind in KINDS for name in names}
    rows = [
        (name, *(f"{mean_interval(distances[kind, name])} ({PRINTED[name][k]:.3f})" for k, kind in enumerate(KINDS)))
        for name in names
    ]
    title = (
        f"Table 4.4: D-distances from corruptions, {plan.seeds} seeds (in brackets: the thesis, ResNet18, CIFAR-10-C)"
    )
    found.tables.append(Table(title, ("corruption", *KINDS), rows))
    same = distances_of(own["clean"], own["clean"])
    gaps = {name: mean_interval(distances["clean", name] - same) for name in names}
    least = min(gaps, key=lambda name: gaps[name].low)
    if any(gap.high < 0 for gap in gaps.values()):
        least = min(gaps, key=lambda name: gaps[name].high)
    claim = "Table 4.4: every corruption is further from clean trainings than clean trainings with other seeds are"
    text = f"{mean_interval(same)} among clean trainings; least gap {gaps[least]}, {least}"
    found.claims.append(effect_claim(claim, text, gaps[least]))
    ours = np.array([distances["clean", name].mean() for name in names])
    theirs = np.array([PRINTED[name][0] for name in names])
    agreement = rank_correlation(ours, theirs)
    claim = "Table 4.4: the corruptions that are far from clean training on CIFAR-10-C are far from it here too"
    found.claims.append(effect_claim(claim, f"rank correlation over {len(names)} corruptions {agreement}", agreement))
    found.draw = partial(draw, ours=ours, theirs=theirs, names=names)


def accuracies(plan: Plan, runs: Mapping[str, list[Trained]], names: list[str], found: Findings) -> None:
    """Section 6.2."""
    acc = {kind: np.array([[100 * each.accuracy(name) for name in names] for each in runs[kind]]) for kind in KINDS}
    rows = [(name, *(str(mean_interval(acc[kind][:, k])) for kind in KINDS)) for k, name in enumerate(names)]
    rows.append(("mean", *(str(mean_interval(acc[kind].mean(axis=1))) for kind in KINDS)))
    title = f"Section 6.2: accuracy under corruptions in percent, mean of 5 severities, {plan.seeds} seeds"
    found.tables.append(Table(title, ("corruption", *KINDS), rows))
    gap = mean_interval(acc["PGD"].mean(axis=1) - acc["clean"].mean(axis=1))
    better = sum(mean_interval(acc["PGD"][:, k] - acc["clean"][:, k]).low > 0 for k in range(len(names)))
    claim = f"Section 6.2: adversarial training (PGD, Linf {plan.eps:g}) is more accurate under corruptions on average"
    found.claims.append(effect_claim(claim, f"by {gap} points, and under {better} of {len(names)} corruptions", gap))


def draw(canvas: Figure, *, ours: Floats, theirs: Floats, names: list[str]) -> None:
    axes = canvas.add_subplot()
    axes.scatter(theirs, ours, s=12)
    for x, y, name in zip(theirs, ours, names, strict=True):
        axes.annotate(name.replace("_", " "), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(title="Table 4.4: D-distance of clean training", xlabel="thesis, CIFAR-10-C", ylabel="here")
