"""`bench study reflected-attacks`: attacks on the cross entropy and on the reflected loss, with the box and without."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bench.core import registry, seeds
from bench.core.attack_specs import PlannedAttack, make_attacks
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.datasets.split import Split
from bench.studies.study import ModelStudy, loaded_model
from leaderboard.render import render

ATTACKS = ("fgsm", "r-fgsm", "bim:steps=40", "r-bim:steps=40", "pgd-40", "r-pgd")
BATCH = 500


@registry.study("reflected-attacks")
@dataclass(frozen=True, kw_only=True)
class ReflectedAttacksStudy(ModelStudy):
    """Accuracy under attacks on the cross entropy and on the reflected loss: points in [0, 1], and in the whole ball.

    reflected-loss.txt (section 4.2, table 1) compares such attacks and does not keep their points in [0, 1].
    A point outside of [0, 1] is not an image, so the second column is not a robust accuracy, and no record has it.
    """

    checkpoint: str | None = None  # file of weights, as of `bench eval`; it must be given
    model: str | None = None  # spec of the model
    dataset: str | None = None  # name of the data set, or an .npz file
    norm: str | None = None  # norm of the threat model; none: the suite's
    eps: float | None = None  # eps of the threat model; none: the suite's
    n_examples: int | None = None  # the first N test examples; none: all
    attacks: tuple[str, ...] = ATTACKS  # specs, separated by commas
    seed: int = 0  # seed of the attacks

    def run(self) -> str:
        if self.checkpoint is None:
            raise UserError("the study needs the weights of a network; give them with --set checkpoint=FILE")
        plan = self.plan(
            checkpoint=Path(self.checkpoint), model=self.model, dataset=self.dataset, norm=self.norm,
            eps=None if self.eps is None else [self.eps], n_examples=self.n_examples,
        )  # fmt: skip
        with_box = make_attacks(self.attacks, plan.threat)
        without = make_attacks(self.attacks, replace(plan.threat, box=None))
        for planned in (*with_box.values(), *without.values()):
            planned.attack.check_fits(planned.threat, plan.arrays.shape, plan.arrays.classes)
        model, test = loaded_model(plan), plan.test_split()
        rows = []
        with Progress("attacks", 2 * len(with_box) * len(test), "example") as progress:
            for name in with_box:
                pair = (with_box[name], without[name])
                accuracies = [accuracy_under(model, test, planned, self.seed, progress) for planned in pair]
                rows.append([name, *(f"{100 * accuracy:.1f}" for accuracy in accuracies)])
        title = (
            f"{plan.name} on {plan.arrays.name}, {plan.threat.norm} {plan.threat.eps:.3g}, {len(test)} test examples"
        )
        return f"{title}, accuracy in %\n\n{render(['attack', 'in [0, 1]', 'without the box'], rows, align='lrr')}"


def accuracy_under(model: nn.Module, test: Split, planned: PlannedAttack, seed: int, progress: Progress) -> float:
    """The share of the examples that are classified correctly and that the attack does not break."""
    correct = 0
    generator = seeds.generator(test.y.device, seed, "reflected-attacks")
    for batch in test.in_order(BATCH):
        x_adv = planned.attack(model, batch, planned.threat, generator=generator)
        with torch.no_grad():
            broken = (model(x_adv).argmax(dim=1) != batch.y) & planned.threat.contains(x_adv, batch.x)
            correct += int((~broken & (model(batch.x).argmax(dim=1) == batch.y)).sum())
        progress.advance(len(batch))
    return correct / len(test)
