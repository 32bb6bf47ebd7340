"""The margins of a ReLU network over a box as a mixed-integer program.

The input of a ReLU is an affine function of the pixels and the ReLUs before it. A stable neuron is linear and needs no
variable. Each unstable neuron is a variable r = max(a, 0). It is bounded from below if a smaller r could lower the
margin, and from above if a larger r could:

    r >= a, r >= 0                          (convex: no integer is needed)
    r <= a - low (1 - z), r <= high z       (z is 0 or 1; Tjeng, Xiao and Tedrake, 2019, Eq. 3)

If all paths from r to the margin have the same sign, one of the two lines suffices: a solution that violates the other
one has a margin no lower than the network's own margin at the same pixels. So half of the last hidden layer needs no
integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from certifiers.activations import Rectifier
from certifiers.interval_bounds import PreActivationBounds
from certifiers.joins import Add, Concatenate, Maximum
from certifiers.layers import Affine
from certifiers.linear_forms import DenseForms
from certifiers.network import Network

Array = NDArray[np.float64]
CHUNK = 256  # dense rows of a layer's matrix at a time


@dataclass(frozen=True)
class Program:
    """Find v with cost @ v + constant <= slack, matrix @ v <= limit and low <= v <= high, whole numbers if `integer`.

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

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> Map:
        return Map(self.coefficients[rows], self.constants[rows])

    def after(self, first: Map) -> Map:
        return Map(self.coefficients @ first.coefficients, self.coefficients @ first.constants + self.constants)

    def scaled(self, factor: Array) -> Map:
        return Map(sp.diags(factor) @ self.coefficients, factor * self.constants)


def affine_maps(network: Network) -> dict[int, Map]:
    """The affine nodes of a network, each as a function of its input."""
    maps = {}
    for k, node in enumerate(network.nodes):
        if isinstance(node.layer, Affine):
            coefficients, constants = [], []
            for units in torch.eye(int(np.prod(node.shape)), dtype=network.image.dtype).split(CHUNK):
                start = DenseForms(units.reshape(1, -1, *node.shape))
                forms, constant = node.layer.backward(start, network.nodes[node.inputs[0]].shape)
                coefficients.append(sp.csr_matrix(forms.dense().flat[0].numpy()))
                constants.append((constant + units.new_zeros(1, len(units)))[0].numpy())
            maps[k] = Map(sp.vstack(coefficients, format="csr"), np.concatenate(constants))
    return maps


@dataclass(frozen=True)
class UnstableNeurons:
    """The unstable neurons of one activation: their variables, their inputs and pre-activation bounds."""

    variables: slice
    inputs: Map
    low: Array
    high: Array


class Encoding:
    """A network around one image: its logits as functions of the pixels and the unstable neurons."""

    def __init__(
        self, network: Network, maps: Mapping[int, Map], low: Tensor, high: Tensor, bounds: PreActivationBounds
    ) -> None:
        """low, high (C,H,W): the box. bounds: pre-activation bounds, (1,*shape) each."""
        self.low, self.high = _flat(low), _flat(high)
        self.neurons: list[UnstableNeurons] = []
        intervals = {k: (_flat(least), _flat(most)) for k, (least, most) in bounds.items()}
        unstable = {k: np.flatnonzero(network.activation(k).unstable(*ends).numpy()) for k, ends in bounds.items()}
        start = len(self.low)
        self.size = start + sum(map(len, unstable.values()))
        outputs = [Map(sp.eye(start, self.size, format="csr"), np.zeros(start))]
        for k, node in enumerate(network.nodes[1:], start=1):
            before = outputs[node.inputs[0]]
            if isinstance(node.layer, Add | Maximum):  # the maximum is relu(a - b) + b
                outputs.append(before + outputs[node.inputs[1]])
            elif isinstance(node.layer, Concatenate):
                outputs.append(stacked([outputs[each] for each in node.inputs]))
            elif isinstance(node.layer, Affine):
                outputs.append(maps[k].after(before))
            else:
                units, (least, most) = unstable[k], intervals[k]
                end = start + len(units)
                self.neurons.append(UnstableNeurons(slice(start, end), before[units], least[units], most[units]))
                # slope a + (1 - slope) max(a, 0): the maximum is a if a >= 0 always, 0 if a <= 0 always, else a
                # variable
                slope = leaks(network, k)
                entries = (1 - slope[units], (units, np.arange(start, end)))
                maximum = Map(sp.csr_matrix(entries, shape=before.coefficients.shape), np.zeros(len(least)))
                outputs.append(before.scaled(np.where(least >= 0, 1.0, slope)) + maximum)
                start = end
        self.logits = outputs[-1]

    def program(self, label: int, other: int) -> Program:
        """The program that asks whether z_label - z_other can be at most the slack."""
        cost = (self.logits.coefficients[label] - self.logits.coefficients[other]).toarray()[0]
        smaller, larger = self._directions(cost)
        blocks, limit = [], []
        binaries = sum(int(larger[neurons.variables].sum()) for neurons in self.neurons)
        before = 0  # number of binary variables of the previous activations
        for neurons in self.neurons:
            variables, low, high = neurons.variables, neurons.low, neurons.high
            at_least, at_most = np.flatnonzero(smaller[variables]), np.flatnonzero(larger[variables])
            r = sp.eye(len(low), self.size, k=variables.start, format="csr")
            a, constants = neurons.inputs.coefficients, neurons.inputs.constants
            z = sp.eye(len(at_most), binaries, k=before, format="csr")
            before += len(at_most)
            blocks += [
                sp.hstack([a[at_least] - r[at_least], sp.csr_matrix((len(at_least), binaries))]),
                sp.hstack([r[at_most] - a[at_most], -sp.diags(low[at_most]) @ z]),
                sp.hstack([r[at_most], -sp.diags(high[at_most]) @ z]),
            ]
            limit += [-constants[at_least], constants[at_most] - low[at_most], np.zeros(len(at_most))]
        used = smaller | larger
        used[: len(self.low)] = True  # all pixels remain variables
        columns = np.concatenate([used, np.ones(binaries, np.bool_)])
        zeros = [np.zeros_like(neurons.low) for neurons in self.neurons]
        return Program(
            cost=np.concatenate([cost, np.zeros(binaries)])[columns],
            constant=float(self.logits.constants[label] - self.logits.constants[other]),
            matrix=sp.vstack([sp.csr_matrix((0, len(columns))), *blocks], format="csr")[:, columns],
            limit=np.concatenate([np.zeros(0), *limit]),
            low=np.concatenate([self.low, *zeros, np.zeros(binaries)])[columns],
            high=np.concatenate([self.high, *(neurons.high for neurons in self.neurons), np.ones(binaries)])[columns],
            integer=np.arange(len(columns))[columns] >= self.size,
        )

    def _directions(self, cost: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks of the variables whose decrease could lower the margin, and of those whose increase could."""
        smaller, larger = cost > 0, cost < 0
        for neurons in reversed(self.neurons):
            a = neurons.inputs.coefficients
            up, down = (a > 0).T.astype(np.int64), (a < 0).T.astype(np.int64)
            smaller |= (up @ smaller[neurons.variables] + down @ larger[neurons.variables]) > 0
            larger |= (up @ larger[neurons.variables] + down @ smaller[neurons.variables]) > 0
        return smaller, larger


def stacked(maps: Sequence[Map]) -> Map:
    """Concatenate several maps."""
    coefficients = sp.vstack([each.coefficients for each in maps], format="csr")
    return Map(coefficients, np.concatenate([each.constants for each in maps]))


def leaks(network: Network, k: int) -> Array:
    """The slope on the left of each unit of a rectifier."""
    activation, shape = network.activation(k), network.nodes[k].shape
    assert isinstance(activation, Rectifier)
    leak = torch.as_tensor(activation.leak, dtype=torch.float64)
    return _flat(leak.expand(1, *shape))


def _flat(values: Tensor) -> Array:
    return values.detach().double().flatten().numpy()
