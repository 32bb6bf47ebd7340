"""Writing proofs (bench/core/proof_format.py): from slopes, splits and multipliers in tensors to bytes.

A certifier rounds its slopes and multipliers with `round_slopes` and `round_multipliers` before it computes a bound,
because the checker computes with the rounded values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from bench.core.proof_format import ALONE, INTERVALS, LEAF, VERSION, Bounds, Line, Proof, Tree, encode
from certifiers.activations import Rectifier
from certifiers.network import Network

Rule = Literal["parallel", "adaptive"]
Assignment = Mapping[int, Tensor | Rule]  # by activation node: lower slopes of its units (*shape), or a rule
LARGEST_MULTIPLIER = 65504.0  # of float16


def can_prove(network: Network) -> bool:
    """Whether the format has proofs for this network: its activations are all rectifiers."""
    return not network.curved


def codes_of(activation: Rectifier, slopes: Tensor) -> Tensor:
    """Slopes (...,*shape) of lines through the origin as the format's numbers q, uint8."""
    leak = torch.as_tensor(activation.leak, dtype=torch.float64, device=slopes.device)
    span = torch.where(leak == 1, 1.0, 1 - leak)  # with a leak of 1 there is only one slope
    return ((slopes.double() - leak) / span * 255).round().clamp(0, 255).to(torch.uint8)


def slopes_of(activation: Rectifier, codes: Tensor, like: Tensor) -> Tensor:
    """The slopes that numbers q (...,*shape) stand for, in the dtype of `like`."""
    leak = torch.as_tensor(activation.leak, dtype=torch.float64, device=codes.device)
    return (leak + (1 - leak) * (codes.double() / 255)).to(like.dtype)


def round_slopes(activation: Rectifier, slopes: Tensor) -> Tensor:
    """The nearest slopes that a proof can hold."""
    return slopes_of(activation, codes_of(activation, slopes), slopes)


def round_multipliers(multipliers: Tensor) -> Tensor:
    """The nearest multipliers that a proof can hold."""
    return multipliers.clamp(0, LARGEST_MULTIPLIER).half().to(multipliers.dtype)


@dataclass
class SplitTree:
    """The sub-problems of some classes while a branch and bound runs. Node 0 is the whole problem."""

    classes: Sequence[int]
    _splits: list[tuple[int, int, int] | None] = field(default_factory=lambda: [None])  # activation, unit, child z <= 0
    _leaves: dict[int, tuple[int, Sequence[float]]] = field(default_factory=dict)

    def split(self, node: int, activation: int, unit: int) -> tuple[int, int]:
        """Split a node on the sign of a unit's input: the nodes for z <= 0 and for z >= 0.

        activation: its position in Network.activations. unit: its index in the flattened layer.
        """
        first = len(self._splits)
        self._splits[node] = (activation, unit, first)
        self._splits += [None, None]
        return first, first + 1

    def close(self, node: int, slopes: int, multipliers: Sequence[float] = ()) -> None:
        """A node is proven with these slopes and multipliers, one for each split on its path from the root."""
        self._leaves[node] = (slopes, multipliers)

    def tree(self) -> Tree:
        """KeyError if a node is neither split nor proven."""
        splits: list[int] = []
        slopes: list[int] = []
        multipliers: list[float] = []
        waiting = [0]
        while waiting:
            node = waiting.pop()
            if (at := self._splits[node]) is not None:
                splits += at[:2]
                waiting += [at[2] + 1, at[2]]
            else:
                splits.append(LEAF)
                slopes.append(self._leaves[node][0])
                multipliers += self._leaves[node][1]
        return Tree(list(self.classes), splits, slopes, np.array(multipliers, dtype="<f2").tobytes())


class ProofBuilder:
    """Collects the parts of one example's proof. Equal lines and assignments are stored once."""

    def __init__(self, network: Network, label: int) -> None:
        self.network, self.label = network, label
        self._lines: dict[Line, int] = {}
        self._slopes: dict[tuple[int, ...], int] = {}
        self._bounds = [Bounds() for _ in network.activations]
        self._trees: list[Tree] = []

    def slopes(self, assignment: Assignment) -> int:
        """The index of an assignment to the first activations, or to all: for `bounds`, `prove` and leaves."""
        lines = []
        for k in self.network.activations[: len(assignment)]:
            line = self._line(k, assignment[k])
            lines.append(self._lines.setdefault(line, len(self._lines)))
        return self._slopes.setdefault(tuple(lines), len(self._slopes))

    def _line(self, k: int, slopes: Tensor | Rule) -> Line:
        if not isinstance(slopes, Tensor):
            return slopes
        activation = self.network.activation(k)
        assert isinstance(activation, Rectifier)
        codes = codes_of(activation, slopes).expand(self.network.nodes[k].shape)
        return ALONE, codes.flatten().cpu().numpy().tobytes()

    def bounds(self, k: int, lower: int, upper: int, *, intersect: bool = False) -> None:
        """Bound the input of activation node k with these slopes; repeated calls keep the tightest bounds.

        intersect: they are intersected with intervals.
        """
        position = self.network.activations.index(k)
        before = self._bounds[position]
        linear = [*before.linear, (lower, upper)]
        self._bounds[position] = Bounds(linear, before.intersect or intersect, before.units)

    def bounds_of_units(self, k: int, units: Tensor, lower: Mapping[int, Tensor], upper: Mapping[int, Tensor]) -> None:
        """Bound some units (m,) of the input of activation node k with slopes of their own, (m,*shape) by activation.

        `bounds` bounds them too; the tightest of all these bounds is kept.
        """
        position = self.network.activations.index(k)
        entries = []
        for row, unit in enumerate(units.tolist()):
            sides = [self.slopes({j: each[row] for j, each in slopes.items()}) for slopes in (lower, upper)]
            entries.append((unit, *sides))
        self._bounds[position] = msgspec.structs.replace(self._bounds[position], units=entries)

    def prove(self, classes: Sequence[int], slopes: int) -> None:
        """The margins of these classes are positive with these slopes and no splits."""
        self._trees.append(Tree(list(classes), [LEAF], [slopes]))

    def prove_by_splits(self, tree: SplitTree) -> None:
        self._trees.append(tree.tree())

    def encoded(self) -> bytes:
        slopes = [list(lines) for lines in self._slopes]
        return encode(Proof(VERSION, self.label, list(self._lines), slopes, self._bounds, self._trees))


def rule_proof(network: Network, label: int, rule: Rule, *, linear: bool = True) -> bytes:
    """The proof of fast-lin ("parallel") and crown ("adaptive"). linear: whether pre-activation bounds are linear."""
    builder = ProofBuilder(network, label)
    slopes = builder.slopes(dict.fromkeys(network.activations, rule))
    for k in network.activations if linear else ():
        builder.bounds(k, slopes, slopes)
    builder.prove(_others(network, label), slopes)
    return builder.encoded()


def interval_proof(network: Network, label: int) -> bytes:
    """The proof of ibp."""
    builder = ProofBuilder(network, label)
    builder.prove(_others(network, label), INTERVALS)
    return builder.encoded()


def _others(network: Network, label: int) -> list[int]:
    return [j for j in range(network.classes) if j != label]
