"""Branch and bound: the complete certifier for networks of rectifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.activations import Rectifier
from certifiers.exact import CounterexampleSearch
from certifiers.input_regions import Region, region_of
from certifiers.network import Network
from certifiers.network_certifier import NetworkCertifier
from certifiers.split_search import SplitSearch

ROOT_STEPS = 20  # of Adam before the first split


@registry.certifier("bab")
@dataclass(frozen=True, kw_only=True)
class BranchAndBound(NetworkCertifier):
    """Splits unstable units until every sub-problem is proven, a counterexample is found, or `nodes` are spent.

    beta-CROWN (Wang et al. 2021): each sub-problem has a linear bound whose slopes and split multipliers are optimised,
    from those of its parent. The first bounds are those of alpha-crown. Units are chosen by filtered smart branching
    (de Palma et al. 2021). Networks of rectifiers (ReLU and its kin, max pooling, clamps); Linf, L2 and L1 balls.

    A certificate holds for the network as a function of real numbers, and comes with a proof. The image at which a
    sub-problem's bound is attained is tried as a counterexample. Examples are decided one by one, so that the result
    depends on the example, the weights and the options only. Deviations: pre-activation bounds are those of the root,
    and a split changes only those of its own unit; examples are not batched, only the sub-problems of one example.
    """

    nodes: int = 1000  # sub-problems of an example, at most
    batch: int = 64  # sub-problems at a time
    steps: int = 10  # of Adam for the slopes and multipliers of a sub-problem
    lr: float = 0.2  # learning rate of Adam
    intermediate_steps: int = 10  # of Adam for the slopes of each pre-activation bound
    candidates: int = 3  # units of each score that branching tries

    def check_network(self, network: Network) -> None:
        for k in network.activations:
            if not isinstance(network.activation(k), Rectifier):
                raise UserError(
                    f"{network.nodes[k].name} is not supported by bab, because {network.activation(k).name} is not "
                    "piecewise linear; use alpha-crown"
                )

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        network = self.checked_network(model, batch.x, threat)
        search = CounterexampleSearch(model, batch, threat)
        starts = [batch.x] if batch.worst_points is None else [batch.x, batch.worst_points]
        for start in starts:
            rows = search.unbroken()
            search.check(start[rows], rows)
        proofs, nodes = [b""] * len(batch), torch.zeros_like(batch.y)
        for i in search.unbroken().tolist():
            row = torch.tensor([i], device=batch.x.device)
            proofs[i], nodes[i] = self._decide(network, region_of(batch.x[row], threat.of(row)), row, starts, search)
        certified = torch.tensor([bool(proof) for proof in proofs], device=batch.x.device)
        eps = threat.eps_like(batch.x).flatten().to(batch.x.dtype)
        radius = torch.where(certified, eps, 0.0)
        return Certificate(radius, certified, nodes=nodes, broken=search.broken, witness=search.witness, proof=proofs)

    def _decide(
        self, network: Network, region: Region, row: Tensor, starts: Sequence[Tensor], search: CounterexampleSearch
    ) -> tuple[bytes, int]:
        """The proof of the example in `row` (1,) of the batch, b"" if it is broken or open; the nodes it took."""
        label = int(search.batch.y[row])
        tree = SplitSearch(network, region, label)
        tree.bound_root(steps=ROOT_STEPS, intermediate_steps=self.intermediate_steps, lr=self.lr)
        for start in starts:
            for target in tree.open_classes():
                if not search.broken[row]:
                    search.ascend(start[row], row, target, step=1.0)
        while tree.can_branch() and tree.nodes + 2 <= self.nodes and not search.broken[row]:
            most = min(self.batch, self.nodes - tree.nodes)
            images = tree.branch(most, steps=self.steps, lr=self.lr, candidates=self.candidates)
            search.check(images, row.expand(len(images)))
        return b"" if tree.has_open() or search.broken[row] else tree.proof(), tree.nodes
