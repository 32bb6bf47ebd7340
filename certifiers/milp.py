"""The margins of a network of ReLUs over a box, as a mixed-integer program.

What enters a ReLU is an affine function of the pixels and of the ReLUs before it. One that is stable between its limits
is linear and leaves no trace. Of the others each is a variable r = max(a, 0), which is bounded from below where a
smaller r could lower the margin, and from above where a larger one could:

    r >= a, r >= 0                          (convex: no integer is needed)
    r <= a - low (1 - z), r <= high z       (z is 0 or 1; Tjeng, Xiao and Tedrake, 2019, Eq. 3)

Where all ways from r to the margin have the same sign, one of the two is enough: a solution that takes liberties on the
other side has a margin no lower than the network's own at the same pixels. So half of the last hidden layer needs no
integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from certifiers.intervals import Limits
from certifiers.layers import Add, Affine
from certifiers.linear_forms import Dense
from certifiers.network import Network

Array = NDArray[np.float64]
CHUNK = 256  # rows of a layer's matrix that are dense at once


@dataclass(frozen=True)
class Program:
    """Is there a v with cost @ v + constant <= slack, matrix @ v <= limit and low <= v <= high, where `integer` whole?

    The first variables are the pixels.
    """

    cost: Array
    constant: float
    matrix: sp.csr_matrix
    limit: Array
    low: Array
    high: Array
    integer: NDArray[np.bool_]


@dataclass(frozen=True)
class Map:
    """T affine functions of the variables: coefficients (T,V), constants (T,)."""

    coefficients: sp.csr_matrix
    constants: Array

    def __add__(self, other: Map) -> Map:
        return Map(self.coefficients + other.coefficients, self.constants + other.constants)

    def __getitem__(self, some: NDArray[np.int64] | slice) -> Map:
        return Map(self.coefficients[some], self.constants[some])

    def after(self, first: Map) -> Map:
        return Map(self.coefficients @ first.coefficients, self.coefficients @ first.constants + self.constants)

    def scaled(self, factor: Array) -> Map:
        return Map(sp.diags(factor) @ self.coefficients, factor * self.constants)


def affine_maps(network: Network) -> dict[int, Map]:
    """The affine nodes of a network, each as a function of its input."""
    return {k: _map(network, k) for k, node in enumerate(network.nodes) if isinstance(node.layer, Affine)}


def _map(network: Network, k: int) -> Map:
    """What the rows of all its units are once they are pulled back through the layer."""
    node = network.nodes[k]
    assert isinstance(node.layer, Affine)
    before = network.nodes[node.inputs[0]].shape
    coefficients, constants = [], []
    for some in torch.eye(int(np.prod(node.shape)), dtype=network.image.dtype).split(CHUNK):
        rows, constant = node.layer.back(Dense(some.reshape(1, -1, *node.shape)), before)
        coefficients.append(sp.csr_matrix(rows.dense().flat[0].numpy()))
        constants.append((constant + some.new_zeros(1, len(some)))[0].numpy())
    return Map(sp.vstack(coefficients, format="csr"), np.concatenate(constants))


@dataclass(frozen=True)
class Relus:
    """The unstable ones of one activation: their places among the variables, what enters them, and its limits."""

    place: slice
    enters: Map
    low: Array
    high: Array


class Encoding:
    """A network around one image: its logits as functions of the pixels and the unstable ReLUs."""

    def __init__(self, network: Network, maps: Mapping[int, Map], low: Tensor, high: Tensor, limits: Limits) -> None:
        """low, high (C,H,W): the box. limits: of what enters the activations, (1,*shape) each."""
        self.low, self.high = _flat(low), _flat(high)
        self.relus: list[Relus] = []
        between = {k: (_flat(least), _flat(most)) for k, (least, most) in limits.items()}
        unstable = {k: np.flatnonzero((least < 0) & (most > 0)) for k, (least, most) in between.items()}
        self.size = len(self.low) + sum(map(len, unstable.values()))
        start = len(self.low)
        found = [Map(sp.eye(start, self.size, format="csr"), np.zeros(start))]
        for k, node in enumerate(network.nodes[1:], start=1):
            before = found[node.inputs[0]]
            if isinstance(node.layer, Add):
                found.append(before + found[node.inputs[1]])
            elif isinstance(node.layer, Affine):
                found.append(maps[k].after(before))
            else:
                some, (least, most) = unstable[k], between[k]
                relus = Relus(slice(start, start + len(some)), before[some], least[some], most[some])
                self.relus.append(relus)
                start += len(some)
                # slope a + (1 - slope) max(a, 0): the maximum is a where a cannot be negative, or a variable, or 0
                slope = network.activation(k).slope[0]
                ones = (np.full(len(some), 1 - slope), (some, np.arange(start - len(some), start)))
                bent = Map(sp.csr_matrix(ones, shape=before.coefficients.shape), np.zeros(len(least)))
                found.append(before.scaled(np.where(least >= 0, 1.0, slope)) + bent)
        self.logits = found[-1]

    def program(self, label: int, other: int) -> Program:
        """Whether z_label - z_other can fall to (nearly) zero."""
        cost = (self.logits.coefficients[label] - self.logits.coefficients[other]).toarray()[0]
        falls, rises = self._directions(cost)
        blocks, limit = [], []
        binary = 0  # how many before
        binaries = sum(int(rises[relus.place].sum()) for relus in self.relus)
        for relus in self.relus:
            here = np.arange(self.size)[relus.place]
            above, below = np.flatnonzero(falls[here]), np.flatnonzero(rises[here])
            unit = sp.eye(len(here), self.size, k=relus.place.start, format="csr")
            a, constants = relus.enters.coefficients, relus.enters.constants
            z = sp.eye(len(below), binaries, k=binary, format="csr")
            binary += len(below)
            blocks += [
                sp.hstack([a[above] - unit[above], sp.csr_matrix((len(above), binaries))]),
                sp.hstack([unit[below] - a[below], -sp.diags(relus.low[below]) @ z]),
                sp.hstack([unit[below], -sp.diags(relus.high[below]) @ z]),
            ]
            limit += [-constants[above], constants[below] - relus.low[below], np.zeros(len(below))]
        used = falls | rises
        used[: len(self.low)] = True  # every pixel has its place
        keep = np.concatenate([used, np.ones(binaries, np.bool_)])
        zeros = [np.zeros_like(relus.low) for relus in self.relus]
        return Program(
            cost=np.concatenate([cost, np.zeros(binaries)])[keep],
            constant=float(self.logits.constants[label] - self.logits.constants[other]),
            matrix=sp.vstack([sp.csr_matrix((0, len(keep))), *blocks], format="csr")[:, keep],
            limit=np.concatenate([np.zeros(0), *limit]),
            low=np.concatenate([self.low, *zeros, np.zeros(binaries)])[keep],
            high=np.concatenate([self.high, *(relus.high for relus in self.relus), np.ones(binaries)])[keep],
            integer=np.arange(len(keep))[keep] >= self.size,
        )

    def _directions(self, cost: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The variables whose fall could lower the margin, and those whose rise could."""
        falls, rises = cost > 0, cost < 0
        for relus in reversed(self.relus):
            a = relus.enters.coefficients
            up, down = (a > 0).T.astype(np.int64), (a < 0).T.astype(np.int64)
            falls |= (up @ falls[relus.place] + down @ rises[relus.place]) > 0
            rises |= (up @ rises[relus.place] + down @ falls[relus.place]) > 0
        return falls, rises


def _flat(values: Tensor) -> Array:
    return values.detach().double().flatten().numpy()
