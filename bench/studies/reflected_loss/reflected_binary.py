"""`bench study reflected-binary`: table 1 of the reflected-loss paper, trained and measured again."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from bench.core import registry
from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.threat import parse_norm
from bench.runs.plan import Plan
from bench.studies.reflected_loss.reflected_attacks import accuracy_under
from bench.studies.reproduction.paper_comparison import Comparison, Figure, Form
from bench.studies.reproduction.paper_tables import PaperTable, read_paper_table
from bench.studies.study import ResumableStudy
from leaderboard.render import render
from leaderboard.significance import seeds_difference

EPS = {"Linf": 0.1, "L2": 2.0}
OUTER = {
    "batch_size": "64", "lr": "1", "momentum": "0", "weight_decay": "0", "schedule": "piecewise",
    "milestones": "0.25+0.5+0.75", "decay": "0.2", "crop": "0", "flip": "false", "probe_every": "0",
}  # fmt: skip
INNER = {"steps": "40", "step": "raw", "alpha": "10", "alpha_decay": "0.2", "alpha_decay_every": "10"}
TRAININGS = {
    "Standard": ("standard", "Linf"), "PGD-inf": ("pgd-at", "Linf"), "R-PGD-inf": ("r-pgd", "Linf"),
    "PGD-2": ("pgd-at", "L2"), "R-PGD-2": ("r-pgd", "L2"),
}  # fmt: skip
DECAY = ":decay=0.2:decay_every=10"
ATTACKS = {
    "FGSM": ("fgsm", "Linf"), "R-FGSM": ("r-fgsm", "Linf"),
    "PGD-inf": (f"pgd:steps=40:alpha=10:step=raw:random_start=false{DECAY}", "Linf"), "R-PGD-inf": ("r-pgd", "Linf"),
    "BIM": (f"bim:steps=40:alpha=10{DECAY}", "Linf"), "R-BIM": (f"r-bim:steps=40:alpha=10{DECAY}", "Linf"),
    "PGD-2": (f"pgd:steps=40:alpha=10:step=raw:random_start=false{DECAY}", "L2"), "R-PGD-2": ("r-pgd", "L2"),
}  # fmt: skip
ORDERED_BY = "R-PGD-inf"  # the attack by whose error the trainings are ordered
PAPER_SEEDS, PAPER_EPOCHS = 10, 20


@registry.study("reflected-binary")
@dataclass(frozen=True, kw_only=True)
class ReflectedBinaryStudy(ResumableStudy):
    """Table 1 of the reflected-loss paper: the error of five trainings on MNIST's 0 and 1 under eight attacks.

    Section 4.2: one hidden layer of 100 ReLUs with one output, 20 epochs, batches of 64, learning rate 1 times 0.2
    every 5 epochs; PGD with raw gradients of each example's loss, of step 10 times 0.2 every 10 steps, from the image.
    The paper does not give the number of steps; more than 40 have no use with these sizes. Points are not clamped to
    [0, 1], so the figures are errors in a ball that contains more than images, and no record has them. An attack here
    counts as successful at any of its points, not only at the last one.
    """

    seeds: int = PAPER_SEEDS  # runs of each training
    epochs: int = PAPER_EPOCHS  # epochs of each training
    n_examples: int | None = None  # the first N test examples; none: all
    rows: tuple[str, ...] = tuple(TRAININGS)  # the trainings, joined by '+'
    form: Form = "markdown"  # format of the report

    def run(self) -> str:
        if self.seeds < 1 or self.epochs < 1:
            raise UserError(f"seeds is {self.seeds} and epochs {self.epochs}; both must be at least 1")
        if unknown := [row for row in self.rows if row not in TRAININGS]:
            raise UserError(f"training '{unknown[0]}' is not one of {', '.join(TRAININGS)}")
        paper = read_paper_table("reflected-1")
        (block,) = paper.blocks
        figures: list[Figure] = []
        by_row: dict[str, list[float]] = {}  # the error of each seed under R-PGD-inf
        complete = True
        for row in self.rows:
            defense, norm = TRAININGS[row]
            inner = {} if row == "Standard" else INNER | {"random_start": "false"}
            plan = self.plan(
                defense=defense, dataset=block.dataset, model=block.model, norm=norm, eps=[EPS[norm]], box=False,
                n_examples=self.n_examples, overrides={**OUTER, **inner, "epochs": str(self.epochs)},
            )  # fmt: skip
            complete = plan.config.n_examples == len(plan.arrays.y_test)
            errors = [errors_of(self.trained(plan, seed), plan, seed, row) for seed in range(self.seeds)]
            by_row[row] = [each[ORDERED_BY] / 100 for each in errors]
            for cell in paper.cells(block, row):
                mean = sum(each[cell.column] for each in errors) / len(errors)
                figures.append(Figure(block, row, cell.column, f"{self.seeds} seeds", mean, cell))
        text = Comparison(paper, figures, [], complete).as_text(self.form)
        if self.form != "markdown":
            return text
        return "\n\n".join([text, *self._shorter(), *order_of(by_row, paper, 1 / plan.config.n_examples)])

    def _shorter(self) -> list[str]:
        """The settings that are smaller than in the paper."""
        less = {"seeds": (self.seeds, PAPER_SEEDS), "epochs": (self.epochs, PAPER_EPOCHS)}
        parts = [f"{ours} {name} instead of {theirs}" for name, (ours, theirs) in less.items() if ours < theirs]
        return [f"run with less than in the paper: {', '.join(parts)}"] if parts else []


def errors_of(model: nn.Module, plan: Plan, seed: int, row: str) -> dict[str, float]:
    """The error in percent under each attack, by the paper's column."""
    test, errors = plan.test_split(), {}
    with Progress(f"attacks on {row}, seed {seed}", len(ATTACKS) * len(test), "example") as progress:
        for column, (spec, norm) in ATTACKS.items():
            threat = replace(plan.threat, norm=parse_norm(norm), eps=EPS[norm])
            (planned,) = make_attacks([spec], threat).values()
            errors[column] = 100 * (1 - accuracy_under(model, test, planned, seed, progress))
    return errors


def order_of(by_row: Mapping[str, Sequence[float]], paper: PaperTable, grain: float) -> list[str]:
    """Compare the errors of each two trainings under R-PGD-inf, as `bench compare` does over seeds, with the paper's.

    by_row: the error of each seed; a single seed has no comparison. grain: 1 / the number of test examples.
    """
    column = paper.columns.index(ORDERED_BY)
    printed = {row: paper.blocks[0].rows[row][column] for row in by_row}
    rows = []
    for low, high in itertools.combinations(sorted(printed, key=printed.__getitem__), 2):
        test = seeds_difference(by_row[high], by_row[low], grain)
        if test.low is None or test.high is None:
            return []
        order = "not decided" if test.low <= 0 <= test.high else "as in the paper" if test.low > 0 else "reversed"
        ours = f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}]"
        rows.append([f"{high} - {low}", f"{printed[high] - printed[low]:+.1f}", ours, f"{test.p:.2g}", order])
    table = render(["difference", "paper", "ours", "p", "order"], rows, align="lrrrl")
    return [f"errors under {ORDERED_BY} in percent, each two trainings\n\n{table}"] if rows else []
