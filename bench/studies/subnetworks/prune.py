"""`bench study prune`: the thesis' tables of pruned networks on a small network, beside the thesis' figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bench.core import registry
from bench.core.attack_specs import make_attacks
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.runs.plan import Plan
from bench.runs.train import loop_of
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.reflected_loss.reflected_attacks import accuracy_under
from bench.studies.reproduction.paper_tables import Block, read_paper_table
from bench.studies.study import ModelStudy
from bench.studies.subnetworks.prune_rows import cells_of, training_of
from bench.training.architecture import linear_layers
from leaderboard.render import render
from leaderboard.significance import seeds_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_SEEDS = 2  # needed for a test
CLEAN = ("5.5", "5.9")  # tables of clean accuracies
CURVE_EXAMPLES = 1000  # test examples on which learning curves are measured


@dataclass
class Cell:
    """One cell: the thesis' figure in percent, ours as fractions (one per seed), and the weights that are kept."""

    row: str
    column: str
    printed: float
    robust: list[float] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    weights: int = 0
    curve: list[float] = field(default_factory=list)  # robust accuracy after each epoch, of the first seed


@registry.study("prune")
@dataclass(frozen=True, kw_only=True)
class PruneStudy(ModelStudy):
    """Tables 5.2 to 5.5 and 5.7 to 5.9 of the thesis and Figure 5.1, on a small network, beside the thesis' figures.

    Each cell is trained as in the table, with the defense's settings for everything else except the epochs, and
    evaluated under PGD; the thesis uses RN34 on CIFAR-10 under AutoAttack, so only the order can be compared. For Table
    5.2 the smallest and the largest gamma are compared at each r by the test of `bench compare` over the seeds.
    """

    table: Literal["5.2", "5.3", "5.4", "5.5", "5.7", "5.8", "5.9"] = "5.2"  # table of the thesis
    dataset: str = "digits"  # name of the data set, or an .npz file
    model: str = "small-cnn:width=16:hidden=128:batchnorm=true"  # spec of the model
    epochs: int = 30  # epochs of each training
    seeds: int = 2  # trainings of each cell
    r: float = 0.99  # pruning rate of the tables that have one
    rows: tuple[str, ...] = ()  # names of rows or their parts between commas, joined by '+'; none: all
    columns: tuple[str, ...] = ()  # names of columns, joined by '+'; none: all
    fast: bool = False  # train with one step of 1.25 eps (FGSM-RS) instead of the defense's attack
    attack: str = "pgd-20"  # attack that measures the robust accuracy
    n_examples: int | None = None  # the first N test examples; none: all
    figure: str | None = None  # file of the learning curves (Figure 5.1), .svg, .pdf or .png; none: no figure
    json: bool = False  # print JSON instead of a table

    def run(self) -> str:
        if self.epochs < 1 or self.seeds < 1:
            raise UserError(f"epochs is {self.epochs} and seeds {self.seeds}; both must be at least 1")
        if self.figure is not None:
            check_figure(self.figure)
        paper = read_paper_table(f"thesis-{self.table}")
        block = paper.blocks[0]
        planned = list(self.planned(block, paper.columns))
        if not planned:
            raise UserError(f"no row or column of table {self.table} is named so; rows: {'; '.join(block.rows)}")
        cells = []
        for cell, plan in planned:
            for seed in range(self.seeds):
                self.train(cell, plan, seed)
            cells.append(cell)
        if self.figure is not None:
            with new_figure(self.figure, 8, 4) as canvas:
                draw_curves(canvas, cells)
        if self.json:
            return json.dumps([vars(cell) for cell in cells], indent=1)
        n = len(planned[0][1].test_split())
        return self.report(cells, f"{paper.title}: {paper.source}", n)

    def planned(self, block: Block, columns: tuple[str, ...]) -> Iterator[tuple[Cell, Plan]]:
        """The requested cells, each with its plan; all are checked before the first training."""
        for row, column, printed in cells_of(block, columns):
            wanted = all(not parts or any(part in (name, *name.split(", ")) for part in parts)
                         for parts, name in ((self.rows, row), (self.columns, column)))  # fmt: skip
            training = training_of(self.table, row, column, self.r) if wanted else None
            if training is None:
                continue
            settings = {"epochs": str(self.epochs), "validation": "0", "select": "last", "probe_every": "0"}
            settings |= {} if self.figure is None else {"keep_curves": str(CURVE_EXAMPLES)}
            if self.fast and training.settings.get("adversary") != "none":
                settings |= {"steps": "1", "alpha": "1.25eps"}
            plan = self.plan(
                defense=training.defense, dataset=self.dataset, model=self.model, n_examples=self.n_examples,
                overrides=settings | training.settings,
            )  # fmt: skip
            yield Cell(row, column, printed), plan

    def train(self, cell: Cell, plan: Plan, seed: int) -> None:
        """Train one network of a cell, and add its measurements."""
        loop, _ = loop_of(plan, plan.new_model(seed), seed)
        with Progress(f"{cell.row}, {cell.column}, seed {seed}", loop.steps, "step") as progress:
            model, _ = loop.run(report=progress.advance)
        test = plan.test_split()
        (planned,) = make_attacks([self.attack], plan.threat).values()
        with Progress("attack", len(test), "example") as progress:
            cell.robust.append(accuracy_under(model, test, planned, seed, progress))
        batch = next(test.in_order(len(test)))
        cell.clean.append(float((model(batch.x).argmax(dim=1) == batch.y).double().mean()))
        weights = [layer.weight for layer in linear_layers(model)]
        cell.kept.append(sum(int((weight != 0).sum()) for weight in weights))
        cell.weights = sum(weight.numel() for weight in weights)
        if seed == 0 and self.figure is not None:
            cell.curve = [1 - line["test_robust_error"] for line in loop.log]

    def report(self, cells: list[Cell], source: str, n: int) -> str:
        measured = "clean" if self.table in CLEAN else self.attack
        head = (
            f"{source}\n{measured} accuracy in %: ours on {self.dataset}, {self.model}, {self.epochs} epochs, "
            f"{self.seeds} seeds, {n} test examples, and (the thesis')"
        )
        rows = list(dict.fromkeys(cell.row for cell in cells))
        columns = list(dict.fromkeys(cell.column for cell in cells))
        found = {(cell.row, cell.column): self.text_of(cell) for cell in cells}
        table = [[row, *(found.get((row, column), "") for column in columns)] for row in rows]
        text = render(["", *columns], table, align="l" + "r" * len(columns))
        most = max(cells, key=lambda cell: max(cell.kept) / cell.weights if cell.kept else 0)
        parts = [head, text, f"largest share kept: {max(most.kept):,} of {most.weights:,} weights, {most.row}"]
        if self.table == "5.2" and self.seeds >= MIN_SEEDS:
            parts.append("\n".join(compared(cells, columns, rows, n)))
        return "\n\n".join([*parts, *([f"figure: {self.figure}"] if self.figure else [])])

    def text_of(self, cell: Cell) -> str:
        values = cell.clean if self.table in CLEAN else cell.robust
        spread = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * statistics.fmean(values):.1f}{spread} ({cell.printed:.1f})"


def compared(cells: list[Cell], columns: list[str], rows: list[str], n: int) -> Iterator[str]:
    """Compare the first row with the last at each pruning rate, over the seeds."""
    by = {(cell.row, cell.column): cell for cell in cells}
    for column in columns:
        first, last = by.get((rows[0], column)), by.get((rows[-1], column))
        if first is None or last is None or first is last:
            continue
        test = seeds_difference(first.robust, last.robust, 1 / n)
        interval = "" if test.low is None or test.high is None else (
            f", 95 % interval [{100 * test.low:+.1f}, {100 * test.high:+.1f}], p = {test.p:.2g}"
        )  # fmt: skip
        thesis = first.printed - last.printed
        yield f"{column}: {rows[0]} minus {rows[-1]}: {100 * test.difference:+.1f}{interval} (the thesis {thesis:+.1f})"


def draw_curves(canvas: Figure, cells: list[Cell]) -> None:
    """Figure 5.1: robust accuracy after each epoch, a panel for each column."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    panels: Any = canvas.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        for cell in (cell for cell in cells if cell.column == column):
            axes.plot(range(1, len(cell.curve) + 1), [100 * value for value in cell.curve], label=cell.row)
        axes.set(title=column, xlabel="epoch", ylabel="test accuracy under PGD, %")
        axes.legend()
