"""The search for a proof of one example: optimised bounds, then splits (branch and bound)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from certifiers.branching import NONE, choose_units
from certifiers.input_regions import Region
from certifiers.linear_forms import DenseForms, margin_specification
from certifiers.local_relaxation import LocalRelaxation
from certifiers.network import Network
from certifiers.optimized_bounds import OptimizedUnits, bounds_of_slopes, optimized_preactivation_bounds
from certifiers.proofs import ProofBuilder, Rule, SplitTree
from certifiers.rounding import accumulated_rounding_error, rounding_error

ROWS = 64  # sub-problems at a time
LAST_STEPS = 200  # of Adam when no unit is left to split
RULES: tuple[Rule, ...] = ("parallel", "adaptive")


@dataclass(frozen=True)
class SubProblems:
    """n sub-problems.

    target: the wrong class, as a row of the margins. node: its index in this class's tree. unit: the unit to split
    next. target, node, value and unit (n,); parameters and signs (n,U) as in LocalRelaxation.
    """

    target: Tensor
    node: Tensor
    value: Tensor
    unit: Tensor
    parameters: Tensor
    signs: Tensor

    def of(self, rows: Tensor) -> SubProblems:
        return SubProblems(*(each[rows] for each in vars(self).values()))

    def joined(self, other: SubProblems) -> SubProblems:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return SubProblems(*(torch.cat(pair) for pair in pairs))


class SplitSearch:
    """Proves that all margins of one image's label are positive over its region (a single row).

    confirmed_by: the same network and region in float64, for `confirm`. enough: a sub-problem is closed if its bound is
    above this number, which is the typical rounding error if bounds are confirmed, and else the largest one. nodes: how
    many sub-problems were bounded. open: the sub-problems to split.
    """

    open: SubProblems

    def __init__(
        self, network: Network, region: Region, label: int, confirmed_by: tuple[Network, Region] | None = None
    ) -> None:
        self.network, self.region, self.label, self.nodes = network, region, label, 0
        y = torch.tensor([label], device=network.image.device)
        others, forms = margin_specification(y, network.classes, network.image)
        self.classes, self.forms = others[0].tolist(), DenseForms(forms.coefficients.transpose(0, 1))
        error = partial(accumulated_rounding_error, typical=True) if confirmed_by else rounding_error
        self.confirmed_by, self.enough = confirmed_by, error(network, region).item()
        self.best = forms.coefficients.new_full((len(self.classes),), -torch.inf)  # of each margin, without splits
        self.trees = [SplitTree([j]) for j in self.classes]
        self.paths: dict[tuple[int, int], list[int]] = {(target, 0): [] for target in range(len(self.classes))}
        self.optimized: dict[int, OptimizedUnits] = {}
        self.closed: list[tuple[LocalRelaxation, SubProblems]] = []
        self.confirmed = 0  # how many entries of `closed` were confirmed
        self.stuck = False  # is there a sub-problem with all units split and no positive bound?

    def bound_root(self, *, steps: int, intermediate_steps: int, lr: float) -> None:
        """Bound all margins; if one is not proven, again with optimised pre-activation bounds."""
        targets = torch.arange(len(self.classes), device=self.best.device)
        for each in (0, intermediate_steps) if intermediate_steps else (0,):
            bounds, self.optimized = optimized_preactivation_bounds(self.network, self.region, steps=each, lr=lr)
            self.local = LocalRelaxation(self.network, self.region, bounds)
            parameters = self.local.start(len(targets))
            zero, value = torch.zeros_like(targets), parameters.new_zeros(len(targets))
            roots = SubProblems(targets, zero, value, zero, parameters, torch.zeros_like(parameters))
            self.open = roots.of(zero[:0])
            self._bound(roots, steps=steps, lr=lr, candidates=1)
            targets = self.open.target
            if len(targets) == 0:
                return

    def margins(self) -> Tensor:
        """The best bound of each margin without splits, (K,), inf at the label."""
        margins = self.best.new_full((len(self.classes) + 1,), torch.inf)
        return margins.index_copy(0, torch.tensor(self.classes, device=margins.device), self.best)

    def has_open(self) -> bool:
        """Whether a margin is not proven."""
        return self.stuck or len(self.open.target) > 0

    def can_branch(self) -> bool:
        """Whether sub-problems are open, and all of them can be split."""
        return not self.stuck and len(self.open.target) > 0

    def open_classes(self) -> list[int]:
        """The classes with a margin that is not proven."""
        return [self.classes[target] for target in self.open.target.unique().tolist()]

    def branch(self, most: int, *, steps: int, lr: float, candidates: int) -> Tensor:
        """Split the open sub-problems with the lowest bounds, into `most` new ones at most but at least two.

        Returns the images (n,C,H,W) at which the bounds of those that are still open are attained.
        """
        count = max(1, most // 2)
        order = self.open.value.argsort(stable=True)
        parents, self.open = self.open.of(order[:count]), self.open.of(order[count:])
        columns = (parents.target.tolist(), parents.node.tolist(), parents.unit.tolist())
        children = torch.tensor([self._split(*each) for each in zip(*columns, strict=True)], device=order.device)
        self.nodes += children.numel()
        unit = parents.unit[:, None]
        parameters = parents.parameters.scatter(1, unit, 0.0)
        below, above = (
            replace(parents, node=children[:, side], parameters=parameters, signs=parents.signs.scatter(1, unit, sign))
            for side, sign in enumerate((-1.0, 1.0))
        )
        return self._bound(below.joined(above), steps=steps, lr=lr, candidates=candidates)

    def _split(self, target: int, node: int, unit: int) -> tuple[int, int]:
        """Split a node of a tree and return the two new nodes."""
        activation, place = self.local.locate(unit)
        children = self.trees[target].split(node, self.network.activations.index(activation), place)
        for child in children:
            self.paths[target, child] = [*self.paths[target, node], unit]
        return children

    def _bound(self, problems: SubProblems, *, steps: int, lr: float, candidates: int) -> Tensor:
        """Bound sub-problems, and add them to the closed or the open ones. Returns the images of the open ones."""
        forms = DenseForms(self.forms.coefficients[problems.target])
        solution = self.local.maximize(
            self.network.output, forms, problems.parameters, problems.signs, steps=steps, lr=lr, enough=self.enough
        )
        solved = replace(problems, value=solution.value, parameters=solution.parameters)
        if self.nodes == 0:
            self.best[problems.target] = torch.maximum(self.best[problems.target], solution.value)
        self.closed.append((self.local, solved.of((solution.value > self.enough).nonzero().squeeze(1))))
        rows = (solution.value <= self.enough).nonzero().squeeze(1)
        unit = choose_units(
            self.local, DenseForms(forms.coefficients[rows]), solution.of(rows), problems.signs[rows],
            candidates=candidates, enough=self.enough,
        )  # fmt: skip
        left = replace(solved.of(rows), unit=unit)
        self.open = self.open.joined(left.of((unit != NONE).nonzero().squeeze(1)))
        if (unit == NONE).any():
            self._bound_without_splits(left.of((unit == NONE).nonzero().squeeze(1)), lr)
        return solution.image[rows]

    def _bound_without_splits(self, problems: SubProblems, lr: float) -> None:
        """Bound sub-problems in which every unit is split, with enough steps to decide nearly all of them."""
        forms = DenseForms(self.forms.coefficients[problems.target])
        solution = self.local.maximize(
            self.network.output, forms, problems.parameters, problems.signs, steps=LAST_STEPS, lr=lr, enough=self.enough
        )
        proven = (solution.value > self.enough).nonzero().squeeze(1)
        self.closed.append((self.local, replace(problems, parameters=solution.parameters).of(proven)))
        self.stuck |= len(proven) < len(problems.target)

    def confirm(self) -> None:
        """Bound the closed sub-problems again in float64, and reopen those that this does not prove."""
        if self.confirmed_by is None:
            return
        network, region = self.confirmed_by
        bounds = bounds_of_slopes(network, region, self.optimized)
        exact, error = LocalRelaxation(network, region, bounds), rounding_error(network, region).item()
        for number in range(self.confirmed, len(self.closed)):
            local, leaves = self.closed[number]
            proven = torch.zeros_like(leaves.target, dtype=torch.bool)
            for rows in torch.arange(len(leaves.target), device=proven.device).split(ROWS):
                part = leaves.of(rows)
                parameters, signs = local.transferred(part.parameters, part.signs, exact)
                forms = DenseForms(self.forms.coefficients[part.target].to(parameters.dtype))
                proven[rows] = exact.bound(network.output, forms, parameters, signs) > error
            self.closed[number] = (local, leaves.of(proven.nonzero().squeeze(1)))
            self._reopen(local, leaves.of((~proven).nonzero().squeeze(1)))
        self.confirmed = len(self.closed)

    def _reopen(self, local: LocalRelaxation, problems: SubProblems) -> None:
        """Move sub-problems back to the open ones."""
        if len(problems.target) == 0:
            return
        parameters, signs = local.transferred(problems.parameters, problems.signs, self.local)
        again = replace(problems, parameters=parameters, signs=signs)
        forms = DenseForms(self.forms.coefficients[problems.target])
        solution = self.local.maximize(self.network.output, forms, parameters, signs, steps=0, lr=0.0)
        unit = choose_units(self.local, forms, solution, signs, candidates=1, enough=self.enough)
        self.open = self.open.joined(replace(again, unit=unit).of((unit != NONE).nonzero().squeeze(1)))
        self.stuck |= bool((unit == NONE).any())

    def proof(self) -> bytes:
        """The proof, once nothing is open."""
        builder = ProofBuilder(self.network, self.label)
        rules = [builder.slopes(dict.fromkeys(self.network.activations, rule)) for rule in RULES]
        for k in self.network.activations:
            for slopes in rules:
                builder.bounds(k, slopes, slopes)
        for k, each in self.optimized.items():
            builder.bounds_of_units(k, each.units, each.lower, each.upper)
        for local, leaves in self.closed:
            for row in range(len(leaves.target)):
                target, node = int(leaves.target[row]), int(leaves.node[row])
                lines = local.slopes(leaves.parameters[row : row + 1], leaves.signs[row : row + 1])
                slopes = builder.slopes({k: each[0] for k, each in lines.items()})
                self.trees[target].close(node, slopes, leaves.parameters[row, self.paths[target, node]].tolist())
        for tree in self.trees:
            builder.prove_by_splits(tree)
        return builder.encoded()
