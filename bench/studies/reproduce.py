"""The thesis' tables 3.6 to 3.9, measured again on its published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import bench
from attacks.pgd import ascend
from bench.core import registry, seeds
from bench.core.contracts import Batch, Certifier, frozen
from bench.core.devices import choose_device, choose_threads
from bench.core.errors import UserError
from bench.core.progress import Progress
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel, checked_norm
from bench.datasets.arrays import Arrays
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.models.build import build_model
from bench.studies import references
from bench.studies.beside_paper import Form, Line, for_people, for_programs
from bench.studies.eps_search import BATCH, draw_distribution, searched
from bench.studies.figures import new_figure
from bench.studies.published import Place, find_checkpoints, method_of
from bench.studies.references import Block, Cell, Reference
from bench.training.foreign_checkpoints import load_foreign

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRECISION = 1e-4  # of the searches of table 3.9
CERTIFIERS = {"IBP": "ibp", "Lin": "fast-lin", "PEC": "pec", "CRO": "crown", "MIP": "exact"}  # by the columns' names

Flags = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]
Key = tuple[str, str]  # a kind of figure, and what gave it: ("CRE", "fast-lin")
Optima = dict[str, tuple[float, dict[str, Values]]]  # by block: its eps, and by row the largest certified eps


@registry.study("reproduce")
def reproduce(
    *,
    table: str = "3.6",
    checkpoints: str | None = None,
    named: tuple[str, ...] = (),
    only: str = "",
    n_examples: int | None = None,
    exact: bool = False,
    seconds: float = 120.0,
    figure: str | None = None,
    form: Form = "markdown",
    data_dir: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
) -> str:
    """Tables 3.6 to 3.9 of the thesis on its checkpoints: ours, the paper's, the difference, and what is wrong with it.

    table: 3.6 (ReLU, Linf), 3.7 (ReLU, L2), 3.8 (sigmoid and tanh) or 3.9 (the search for eps; with figure 3.9 where
    `figure` names a file). checkpoints: their folder (default: shared/checkpoints beside this checkout), with names as
    bench/studies/published.py reads them; named: FILE=NAME,... for files called otherwise; only: measure those with
    this in their path. Rows without a checkpoint are listed. n_examples: the first of the test set; unless it is all of
    it, nothing is called equal. exact: CRE MIP too, with `seconds` for an example. form: csv and json for programs.

    CTE and PGD are errors: PGD is 20 steps of eps / 10 from a normal start times the step, its last iterate. CRE is the
    share that is not certified, ACB eps times the certified share, ACB PEC the mean radius. Under L2 the column CRE Lin
    is PEC's share; what the linear bounds certify alone is the line by fast-lin.
    """
    reference = _reference(table)
    drawn = _figure(figure, table)
    beside = Path(bench.__file__).parents[2] / "shared" / "checkpoints"
    files = find_checkpoints(beside if checkpoints is None else Path(checkpoints), named)
    where = choose_device(device)
    arrays = cache(lambda dataset: load_arrays(dataset, None if data_dir is None else Path(data_dir)))
    lines: list[Line] = []
    optima: Optima = {}
    whole = True
    for block, row, place in _places(reference):
        if place not in files or only not in str(files[place]):
            continue
        model, test = _loaded(files[place], block, arrays(block.dataset), n_examples, where)
        whole &= len(test) == len(arrays(block.dataset).y_test)
        torch.set_num_threads(threads or choose_threads(model, test.image_shape))
        threat = ThreatModel(checked_norm(block.norm), block.eps)
        if block.high is None:
            certifiers = _certifiers(reference, seconds if exact else None)
            draw = seeds.generator(where, seed, "reproduce", *vars(place).values())
            ours = measured(model, test, threat, certifiers, generator=draw, title=files[place].stem)
        else:
            found = searched(model, test, threat, high=block.high, precision=PRECISION)
            ours = _counts(found.mean_bounds, math.ceil(math.log2(block.high / PRECISION)))
            optima.setdefault(block.title, (block.eps, {}))[1][row] = found.optimum
        lines += _lines(block, row, ours, reference)
    missing = [(block.title, row) for block, row, place in _places(reference) if place not in files]
    if form != "markdown":
        return for_programs(lines, missing, form, whole)
    text = for_people(reference, lines, missing, whole)
    if drawn is None or figure is None or not optima:
        return text
    draw_optima(drawn, optima)
    drawn.savefig(figure)
    return f"{text}\n\nfigure: {figure}"


def _reference(table: str) -> Reference:
    tables = [name.removeprefix("thesis-") for name in references.names() if name.startswith("thesis-")]
    if table not in tables:
        raise UserError(f"table '{table}' is not one of {', '.join(tables)}; choose one with --table")
    return references.read(f"thesis-{table}")


def _figure(figure: str | None, table: str) -> Figure | None:
    if figure is None:
        return None
    if table != "3.9":
        raise UserError(f"table {table} has no figure; 3.9 has one, and `bench study eps-search` draws figure 3.6")
    return new_figure(Path(figure), 11, 4.5)


def _places(reference: Reference) -> Iterator[tuple[Block, str, Place]]:
    for block in reference.blocks:
        for row in block.rows:
            yield block, row, Place(block.dataset, block.model, block.norm, method_of(row))


def _loaded(
    path: Path, block: Block, arrays: Arrays, n_examples: int | None, device: torch.device
) -> tuple[nn.Module, Split]:
    """A checkpoint's model in eval mode, and the first test examples."""
    n = len(arrays.y_test) if n_examples is None else n_examples
    if not 1 <= n <= len(arrays.y_test):
        raise UserError(f"n_examples is {n}; {arrays.name} has 1 to {len(arrays.y_test)} test examples")
    model = build_model(block.model, arrays.shape, arrays.classes)
    load_foreign(model, path)
    return model.to(device).eval(), Split(arrays.x_test[:n], arrays.y_test[:n], device)


def _certifiers(reference: Reference, seconds: float | None) -> dict[str, Certifier]:
    """What measures a table, by spec, fast-lin before those that go on with what it leaves; exact where it has time."""
    columns = [column.split()[1] for column in reference.columns if column.startswith(("CRE", "ACB"))]
    wanted = {"fast-lin", *(CERTIFIERS[name] for name in columns), *(note.certifier for note in reference.notes)}
    order = [*CERTIFIERS.values(), *sorted(spec for spec in wanted if spec and spec not in CERTIFIERS.values())]
    made = {spec: parse_spec(spec, registry.certifier).make() for spec in order if spec in wanted and spec != "exact"}
    if seconds is not None and "exact" in wanted:
        made["exact"] = registry.certifier.get("exact")(seconds=seconds)
    return made


def measured(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    certifiers: Mapping[str, Certifier],
    *,
    generator: torch.Generator,
    title: str,
) -> dict[Key, float]:
    """Errors in percent, mean radii in the scale of eps, of a model on all examples of a split.

    pec (whose bounds are fast-lin's) and exact are spared what fast-lin has certified, exact also what PGD has broken.
    """
    assert isinstance(threat.eps, float)
    clean, pgd = (torch.zeros_like(test.y, dtype=torch.bool) for _ in range(2))
    points = torch.empty((len(test), *test.image_shape), device=test.y.device)
    proven: dict[str, Tensor] = {}
    with Progress(title, len(test) * (1 + len(certifiers)), "example") as progress:
        for batch in test.in_order(BATCH):
            points[batch.index] = pgd_points(model, batch, threat, generator)
            with torch.no_grad():
                clean[batch.index] = model(batch.x).argmax(dim=1) == batch.y
                pgd[batch.index] = model(points[batch.index]).argmax(dim=1) == batch.y
            progress.advance(len(batch), "pgd")
        found = {("CTE", ""): _error(clean), ("PGD", ""): _error(pgd)}
        for spec, certifier in certifiers.items():
            known = proven["fast-lin"] if spec in ("pec", "exact") else torch.zeros_like(clean)
            rest = clean & ~known & pgd if spec == "exact" else clean & ~known
            progress.advance(len(test) - int(rest.sum()), spec)
            proven[spec], radius, open_ = known.clone(), known * threat.eps, torch.zeros_like(clean)
            for rows in rest.nonzero().squeeze(1).split(BATCH):
                proof = certifier(model, test.take(rows), threat, generator=generator, hint=points[rows])
                proven[spec][rows], radius[rows] = proof.certified, proof.radius.to(radius.dtype)
                open_[rows] = ~proof.certified if proof.broken is None else ~(proof.certified | proof.broken)
                progress.advance(len(rows), spec)
            if spec == "exact":
                found |= {("CRE", spec): _error(proven[spec]), ("open", spec): 100 - _error(open_)}
                continue
            if spec == "pec":
                found["radius", spec] = float(radius.double().mean())
            if spec != "pec" or threat.norm == "L2":  # under Linf its share is fast-lin's
                share = float(proven[spec].double().mean())
                found |= {("CRE", spec): _error(proven[spec]), ("ACB", spec): threat.eps * share}
    return found


def _error(right: Tensor) -> float:
    """In percent."""
    return 100 * float((~right).double().mean())


def pgd_points(model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """The authors' attack: 20 steps of eps / 10 from a normal start times the step; the last iterate."""
    assert isinstance(threat.eps, float)
    alpha = threat.eps / 10
    noise = torch.randn(batch.x.shape, generator=generator, device=batch.x.device)
    start = threat.project(batch.x + alpha * noise, batch.x)
    with frozen(model):
        return ascend(model, batch.x, batch.y, threat=threat, steps=20, alpha=alpha, start=start)[0]


def _counts(pec: float, bisection: int) -> dict[Key, float]:
    """Plain bisection takes as many bounds for every example, so nothing needs to be measured."""
    return {("T_Lin", ""): bisection, ("T_PEC", ""): pec, ("T_PEC / T_Lin", ""): pec / bisection}


def _lines(block: Block, row: str, ours: Mapping[Key, float], reference: Reference) -> Iterator[Line]:
    """The table's columns in their order, then what else was measured."""
    left = dict(ours)
    for cell in reference.cells(block, row):
        key = _key_of(cell)
        if key in left:
            yield Line(block, row, cell.column, key[1], left.pop(key), cell)
    for (name, by), value in left.items():
        yield Line(block, row, name, by, value, None)


def _key_of(cell: Cell) -> Key:
    kind, _, short = cell.column.partition(" ")
    if kind not in ("CRE", "ACB"):
        return cell.column, ""
    by = cell.certifier or CERTIFIERS[short]
    return ("radius", by) if short == "PEC" else (kind, by)


def draw_optima(figure: Figure, optima: Optima) -> None:
    """Figure 3.9, a panel for each block."""
    panels = figure.subplots(1, len(optima), squeeze=False)[0]
    for axes, (title, (eps, by_row)) in zip(panels, optima.items(), strict=True):
        draw_distribution(axes, by_row, eps)
        axes.set_title(title)
