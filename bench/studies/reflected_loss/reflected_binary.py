"""`bench study reflected-binary`: table 1 of the reflected-loss paper, trained and measured again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.core import registry
from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.threat import parse_norm
from bench.datasets.split import Split
from bench.runs.plan import Plan
from bench.studies.reflected_loss.reflected_attacks import accuracy_under
from bench.studies.reproduction.paper_comparison import Comparison, Figure, Form
from bench.studies.reproduction.paper_tables import PaperTable, read_paper_table
from bench.studies.study import ModelStudy
from bench.training.loop import Loop

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
PAPER_SEEDS, PAPER_EPOCHS = 10, 20


@registry.study("reflected-binary")
@dataclass(frozen=True, kw_only=True)
class ReflectedBinaryStudy(ModelStudy):
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
        complete = True
        for row in self.rows:
            defense, norm = TRAININGS[row]
            inner = {} if row == "Standard" else INNER | {"random_start": "false"}
            plan = self.plan(
                defense=defense, dataset=block.dataset, model=block.model, norm=norm, eps=[EPS[norm]],
                n_examples=self.n_examples, overrides={**OUTER, **inner, "epochs": str(self.epochs)},
            )  # fmt: skip
            complete = plan.config.n_examples == len(plan.arrays.y_test)
            errors = [errors_of(plan, seed, row) for seed in range(self.seeds)]
            for cell in paper.cells(block, row):
                mean = sum(each[cell.column] for each in errors) / len(errors)
                figures.append(Figure(block, row, cell.column, f"{self.seeds} seeds", mean, cell))
        text = Comparison(paper, figures, [], complete).as_text(self.form)
        return text if self.form != "markdown" else "\n\n".join([text, *self._shorter(), order_of(paper, figures)])

    def _shorter(self) -> list[str]:
        """The settings that are smaller than in the paper."""
        less = {"seeds": (self.seeds, PAPER_SEEDS), "epochs": (self.epochs, PAPER_EPOCHS)}
        parts = [f"{ours} {name} instead of {theirs}" for name, (ours, theirs) in less.items() if ours < theirs]
        return [f"run with less than in the paper: {', '.join(parts)}"] if parts else []


def errors_of(plan: Plan, seed: int, row: str) -> dict[str, float]:
    """Train once, and return the error in percent under each attack, by the paper's column."""
    assert plan.defense is not None
    train = Split(plan.arrays.x_train, plan.arrays.y_train, plan.device)
    loop = Loop(plan.new_model(seed), plan.defense, train, replace(plan.threat, box=None), seed=seed)
    with Progress(f"{row}, seed {seed}", loop.steps, "step") as progress:
        model, _ = loop.run(report=progress.advance)
    test, errors = plan.test_split(), {}
    with Progress(f"attacks on {row}, seed {seed}", len(ATTACKS) * len(test), "example") as progress:
        for column, (spec, norm) in ATTACKS.items():
            threat = replace(plan.threat, norm=parse_norm(norm), eps=EPS[norm], box=None)
            (planned,) = make_attacks([spec], threat).values()
            errors[column] = 100 * (1 - accuracy_under(model, test, planned, seed, progress))
    return errors


def order_of(paper: PaperTable, figures: Sequence[Figure]) -> str:
    """The trainings by their error under R-PGD-inf, ours and the paper's, smallest first."""
    ours = {figure.row: figure.ours for figure in figures if figure.name == "R-PGD-inf"}
    printed = {row: values[paper.columns.index("R-PGD-inf")] for row, values in paper.blocks[0].rows.items()}
    orders = [", ".join(sorted(ours, key=errors.__getitem__)) for errors in (ours, printed)]
    return f"by error under R-PGD-inf, smallest first: ours {orders[0]}; the paper's {orders[1]}"
