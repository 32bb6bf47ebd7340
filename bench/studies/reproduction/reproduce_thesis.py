"""`bench study reproduce`: tables 3.6 to 3.9 of the thesis, measured on its published checkpoints and on own runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.inner_attacks import gaussian_start
from bench.core import registry, seeds
from bench.core.contracts import Batch, Certifier, frozen
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.studies.certified_training.eps_search import BATCH, draw_distribution, search_largest_eps
from bench.studies.figure_style import check_figure, new_figure
from bench.studies.reflected_loss.reflected_binary import ReflectedBinaryStudy
from bench.studies.reproduction.checkpoint_names import CheckpointKey, find_checkpoints, method_of
from bench.studies.reproduction.paper_comparison import Comparison, Figure, Form
from bench.studies.reproduction.paper_tables import Block, Cell, PaperTable, paper_table_names, read_paper_table
from bench.studies.reproduction.trained_tables import TABLES, compare_runs
from bench.studies.reproduction.trained_weights import trained_runs, weights_of_row
from bench.studies.study import ModelStudy, loaded_model
from bench.studies.subnetworks.prune import PruneStudy

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

PRUNED = tuple(get_args(get_type_hints(PruneStudy)["table"]))  # tables of `bench study prune`
LARGE = ("5.6", "5.10")  # tables of networks and data that are too large for a study
COMMON = ("table", "form", "data_dir", "device", "threads")  # options of every table
OPTIONS = dict.fromkeys(TABLES, ("runs",)) | {"reflected-1": ("n_examples",)}  # the other options that a table has
PRECISION = 1e-4  # of the searches of table 3.9
CERTIFIERS = {"IBP": "ibp", "Lin": "fast-lin", "PEC": "pec", "CRO": "crown", "MIP": "exact"}  # by column name

Values = npt.NDArray[np.float64]
Key = tuple[str, str]  # a kind of figure and the certifier: ("CRE", "fast-lin")


@registry.study("reproduce")
@dataclass(frozen=True, kw_only=True)
class ReproduceStudy(ModelStudy):
    """Tables 3.6 to 3.9 of the thesis on its checkpoints: our numbers, those of the paper, and why they differ.

    Rows without weights are listed. checkpoint_names.py describes how file names are read. With --runs, the runs of a
    folder with a row's data, model, norm, eps and defense (the suites mnist-fc1, mnist, ... have these) are measured
    too. The report gives their epochs, but no verdict on them.
    `reflected-1` is `bench study reflected-binary`, which trains; 4.2, 4.6, 4.7, 5.11 and reflected-2 read your runs.
    Those of reflected-2 are attacked by `pgd:steps=50:restarts=10:eps=8/255`, regardless of the training's eps.

    CTE, PGD and CRE are errors in percent: clean; under PGD (20 steps of eps / 10, started from Gaussian noise scaled
    by the step, last iterate); and the share that is not certified. ACB is eps times the certified share, ACB PEC the
    mean radius. Under L2 the column CRE Lin is PEC's share; the extra row for fast-lin is the share of the linear
    bounds.
    """

    table: str = "3.6"  # 3.6 (ReLU, Linf), 3.7 (ReLU, L2), 3.8 (sigmoid, tanh), 3.9 (largest eps), or another one
    checkpoints: str | None = None  # folder of the published weights, for tables 3.6 to 3.9
    runs: str | None = None  # folder of your runs; tables 3.6 to 3.9 need it or checkpoints
    named: tuple[str, ...] = ()  # FILE=NAME for weights in files with other names
    only: str = ""  # measure only the checkpoints whose path contains this
    n_examples: int | None = None  # the first N test examples; verdicts are given only if it is all of them
    exact: bool = False  # compute CRE MIP too
    nodes: int = 5000  # the most nodes of `exact` for one example
    figure: str | None = None  # file for figure 3.9, of table 3.9 only
    form: Form = "markdown"  # format of the report
    seed: int = 0  # seed of PGD

    def run(self) -> str:
        self._check_options()
        if self.table == "reflected-1":  # this table is trained here
            return ReflectedBinaryStudy(
                data_dir=self.data_dir, device=self.device, threads=self.threads, n_examples=self.n_examples,
                form=self.form,
            ).run()  # fmt: skip
        paper = _paper_table(self.table)
        if self.table in TABLES:
            if self.runs is None:
                raise UserError(f"table {self.table} is one of trainings; give the folder of your runs with --runs DIR")
            return compare_runs(self.table, paper, Path(self.runs), self.form)
        if self.checkpoints is None and self.runs is None:
            raise UserError(
                "the weights of the thesis are not part of this package; give --checkpoints DIR or --runs DIR"
            )
        if self.nodes < 1:
            raise UserError(f"nodes is {self.nodes}; it must be at least 1")
        files = find_checkpoints(Path(self.checkpoints), self.named) if self.checkpoints is not None else {}
        runs = trained_runs(Path(self.runs)) if self.runs is not None else []
        figures: list[Figure] = []
        missing: list[tuple[str, str]] = []
        optima: dict[str, tuple[float, dict[str, Values]]] = {}  # block title -> eps, largest certified eps by row
        complete = True
        for block, row, key in _rows(paper):
            found = list(weights_of_row(block, key, files.get(key), runs))
            if not found:
                missing.append((block.title, row))
            for weights in found:
                if self.only not in str(weights.file):
                    continue
                plan = self.plan(
                    checkpoint=weights.file, dataset=block.dataset, model=block.model, norm=block.norm,
                    eps=[block.eps], n_examples=self.n_examples,
                )  # fmt: skip
                test, threat, model = plan.test_split(), plan.threat, loaded_model(plan)
                complete &= len(test) == len(plan.arrays.y_test)
                if block.high is None:
                    certifiers = _certifiers(paper, self.nodes if self.exact else None)
                    draw = seeds.generator(plan.device, self.seed, "reproduce", *vars(key).values())
                    ours = measure(model, test, threat, certifiers, generator=draw, title=weights.title)
                else:
                    search = search_largest_eps(model, test, threat, high=block.high, precision=PRECISION)
                    ours = _counts(search.mean_bounds, math.ceil(math.log2(block.high / PRECISION)))
                    name = row if weights.run is None else f"{row} ({weights.run})"
                    optima.setdefault(block.title, (block.eps, {}))[1][name] = search.optimum
                figures += [replace(figure, run=weights.run) for figure in _figures(block, row, ours, paper)]
        text = Comparison(paper, figures, missing, complete).as_text(self.form)
        if self.figure is None or not optima:
            return text
        with new_figure(self.figure, 11, 4.5) as canvas:
            draw_optima(canvas, optima)
        return f"{text}\n\nfigure: {self.figure}" if self.form == "markdown" else text

    def _check_options(self) -> None:
        """UserError for a table of another study, and for options that the table does not have."""
        if self.table in PRUNED:
            raise UserError(f"table {self.table} is of pruned networks; see `bench study prune --help`")
        if self.table in LARGE:
            raise UserError(f"table {self.table} has no study; its figures are in leaderboard/expected")
        if self.figure is not None:
            if self.table != "3.9":
                raise UserError(f"table {self.table} has no figure, 3.9 has one; leave out --figure")
            check_figure(self.figure)
        if self.table not in OPTIONS:
            return
        for option in fields(self):
            used = option.name in COMMON or option.name in OPTIONS[self.table]
            if not used and getattr(self, option.name) != option.default:
                raise UserError(f"table {self.table} does not use {option.name}; leave it out")


def _paper_table(table: str) -> PaperTable:
    in_order = sorted(paper_table_names(), reverse=True, key=lambda name: name.startswith("thesis"))
    names = {name.removeprefix("thesis-"): name for name in in_order if name != "non-uniform"}
    names = {table: name for table, name in names.items() if table not in PRUNED}
    if table not in names:
        raise UserError(f"table '{table}' is not one of {', '.join(names)}; choose one with --table")
    return read_paper_table(names[table])


def _rows(paper: PaperTable) -> Iterator[tuple[Block, str, CheckpointKey]]:
    for block in paper.blocks:
        for row in block.rows:
            yield block, row, CheckpointKey(block.dataset, block.model, block.norm, method_of(row))


def _certifiers(paper: PaperTable, nodes: int | None) -> dict[str, Certifier]:
    """The certifiers of a table's columns, by spec, in the order in which they run; exact only if given `nodes`."""
    columns = [column.split()[1] for column in paper.columns if column.startswith(("CRE", "ACB"))]
    wanted = {"fast-lin", *(CERTIFIERS[name] for name in columns), *(note.certifier for note in paper.notes)}
    order = [*CERTIFIERS.values(), *sorted(spec for spec in wanted if spec and spec not in CERTIFIERS.values())]
    certifiers = {spec: parse_spec(spec, registry.certifier).make() for spec in order if spec in wanted - {"exact"}}
    if nodes is not None and "exact" in wanted:
        certifiers["exact"] = registry.certifier.get("exact")(nodes=nodes)
    return certifiers


def measure(
    model: nn.Module, test: Split, threat: ThreatModel, certifiers: Mapping[str, Certifier], *,
    generator: torch.Generator, title: str,
) -> dict[Key, float]:  # fmt: skip
    """Errors in percent and mean radii in the scale of eps, over all examples of a split.

    pec and exact skip the examples that fast-lin certified (pec uses its bounds); exact also skips those that PGD
    broke.
    """
    assert isinstance(threat.eps, float)
    clean, pgd = (torch.zeros_like(test.y, dtype=torch.bool) for _ in range(2))
    points = torch.empty((len(test), *test.image_shape), device=test.y.device)
    certified: dict[str, Tensor] = {}
    with Progress(title, len(test) * (1 + len(certifiers)), "example") as progress:
        for batch in test.in_order(BATCH):
            points[batch.index] = pgd_points(model, batch, threat, generator)
            with torch.no_grad():
                clean[batch.index] = model(batch.x).argmax(dim=1) == batch.y
                pgd[batch.index] = model(points[batch.index]).argmax(dim=1) == batch.y
            progress.advance(len(batch), "pgd")
        figures = {("CTE", ""): _error(clean), ("PGD", ""): _error(pgd)}
        for spec, certifier in certifiers.items():
            known = certified["fast-lin"] if spec in ("pec", "exact") else torch.zeros_like(clean)
            rest = clean & ~known & pgd if spec == "exact" else clean & ~known
            progress.advance(len(test) - int(rest.sum()), spec)
            certified[spec], radius, undecided = known.clone(), known * threat.eps, torch.zeros_like(clean)
            left = rest.nonzero().squeeze(1)
            for rows in left.split(BATCH) if len(left) else ():
                batch = replace(test.take(rows), worst_points=points[rows])
                result = certifier(model, batch, threat, generator=generator)
                certified[spec][rows], radius[rows] = result.certified, result.radius.to(radius.dtype)
                broken = torch.zeros_like(result.certified) if result.broken is None else result.broken
                undecided[rows] = ~(result.certified | broken)
                progress.advance(len(rows), spec)
            if spec == "exact":
                figures |= {("CRE", spec): _error(certified[spec]), ("open", spec): 100 - _error(undecided)}
                continue
            if spec == "pec":
                figures["radius", spec] = float(radius.double().mean())
            if spec != "pec" or threat.norm == "L2":  # under Linf its share is fast-lin's
                share = float(certified[spec].double().mean())
                figures |= {("CRE", spec): _error(certified[spec]), ("ACB", spec): threat.eps * share}
    return figures


def _error(correct: Tensor) -> float:
    """The share that is not correct, in percent."""
    return 100 * float((~correct).double().mean())


def pgd_points(model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """The authors' attack: 20 steps of eps / 10, started from Gaussian noise scaled by the step; the last iterate."""
    assert isinstance(threat.eps, float)
    alpha = threat.eps / 10
    start = gaussian_start(batch.x, alpha, threat, generator)
    with frozen(model):
        return ascend(model, batch.x, batch.y, threat=threat, steps=20, alpha=alpha, start=start)


def _counts(pec: float, bisection: int) -> dict[Key, float]:
    """The columns of table 3.9. Plain bisection needs the same number of bounds for every example."""
    return {("T_Lin", ""): bisection, ("T_PEC", ""): pec, ("T_PEC / T_Lin", ""): pec / bisection}


def _figures(block: Block, row: str, ours: Mapping[Key, float], paper: PaperTable) -> Iterator[Figure]:
    """The table's columns in their order, then all other measured figures."""
    rest = dict(ours)
    for cell in paper.cells(block, row):
        key = _key_of(cell)
        if key in rest:
            yield Figure(block, row, cell.column, key[1], rest.pop(key), cell)
    for (name, by), value in rest.items():
        yield Figure(block, row, name, by, value, None)


def _key_of(cell: Cell) -> Key:
    kind, _, short = cell.column.partition(" ")
    if kind not in ("CRE", "ACB"):
        return cell.column, ""
    by = cell.certifier or CERTIFIERS[short]
    return ("radius", by) if short == "PEC" else (kind, by)


def draw_optima(canvas: Canvas, optima: Mapping[str, tuple[float, Mapping[str, Values]]]) -> None:
    """Figure 3.9: a panel for each block, with its eps and the largest certified eps by row."""
    panels = canvas.subplots(1, len(optima), squeeze=False)[0]
    for axes, (title, (eps, by_row)) in zip(panels, optima.items(), strict=True):
        draw_distribution(axes, by_row, eps)
        axes.set_title(title)
