"""Branch and bound: the complete certifier for networks of rectifiers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import UserError
from bench.core.threat import ThreatModel
from certifiers.counterexample_search import CounterexampleSearch
from certifiers.faithfulness import float64_twin
from certifiers.input_regions import region_of
from certifiers.network import Network
from certifiers.network_certifier import NetworkCertifier, check_piecewise_linear
from certifiers.split_search import SplitSearch

ROOT_STEPS = 20  # of Adam before the first split


@registry.certifier("bab")
@dataclass(frozen=True, kw_only=True)
class BranchAndBound(NetworkCertifier):
    """Splits unstable units until every sub-problem is proven, a counterexample is found, or `nodes` are spent.

    beta-CROWN (Wang et al. 2021): each sub-problem has a linear bound whose slopes and split multipliers are optimised,
    starting from those of its parent. The first bounds are those of alpha-crown. Units are chosen by filtered smart
    branching (de Palma et al. 2021). It supports networks of rectifiers (ReLU and its variants, max pooling, clamps)
    under Linf, L2 and L1.

    A certificate holds for the network as a function of real numbers, and comes with a proof. The bounds of all
    sub-problems are computed again in float64 before an example is certified. The image at which a sub-problem's bound
    is attained is tested as a counterexample. Examples are decided one by one, so the result depends only on the
    example, the weights and the options. Deviations: sub-problems use the pre-activation bounds of the root, and a
    split changes only those of its own unit; the sub-problems of one example are batched, examples are not.
    """

    nodes: int = 1000  # sub-problems of an example, at most
    batch: int = 64  # sub-problems at a time
    steps: int = 10  # Adam steps for the slopes and multipliers of a sub-problem
    lr: float = 0.2  # learning rate of Adam
    intermediate_steps: int = 10  # Adam steps for the slopes of each pre-activation bound
    candidates: int = 3  # units of each score that branching tries

    def check_network(self, network: Network) -> None:
        check_piecewise_linear(network, "bab")

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        network = self.checked_network(model, batch.x, threat)
        twin = _float64_network(model, batch.x)
        search = CounterexampleSearch(model, batch, threat)
        search.check_starts()
        proofs, nodes = [b""] * len(batch), torch.zeros_like(batch.y)
        for i in search.unbroken().tolist():
            row = torch.tensor([i], device=batch.x.device)
            tree = self._tree(network, twin, search, row)
            for start in search.starts:
                for target in tree.open_classes():
                    if not search.broken[i]:
                        search.ascend(start[row], row, target, step=1.0)
            proofs[i] = self._decide(tree, search, row)
            nodes[i] = tree.nodes
        certified = torch.tensor([bool(proof) for proof in proofs], device=batch.x.device)
        radius = torch.where(certified, threat.eps_like(batch.x).flatten().to(batch.x.dtype), 0.0)
        return Certificate(radius, certified, nodes=nodes, broken=search.broken, witness=search.witness, proof=proofs)

    def _tree(self, network: Network, twin: Network | None, search: CounterexampleSearch, row: Tensor) -> SplitSearch:
        """The sub-problems of the example in `row` (1,) of the batch, before the first split."""
        x, threat, label = search.batch.x[row], search.threat.of(row), int(search.batch.y[row])
        confirmed_by = None if twin is None else (twin, region_of(x.to(twin.image.dtype), threat))
        tree = SplitSearch(network, region_of(x, threat), label, confirmed_by)
        tree.bound_root(steps=ROOT_STEPS, intermediate_steps=self.intermediate_steps, lr=self.lr)
        return tree

    def _decide(self, tree: SplitSearch, search: CounterexampleSearch, row: Tensor) -> bytes:
        """Split until the example in `row` (1,) is decided or `nodes` are spent. Returns its proof, or b""."""
        while not search.broken[row]:
            if not tree.has_open():
                tree.confirm()
                if not tree.has_open():
                    return tree.proof()
            if not tree.can_branch() or tree.nodes + 2 > self.nodes:
                break
            most = min(self.batch, self.nodes - tree.nodes)
            images = tree.branch(most, steps=self.steps, lr=self.lr, candidates=self.candidates)
            search.check(images, row.expand(len(images)))
        return b""


def _float64_network(model: nn.Module, x: Tensor) -> Network | None:
    """The layers of the model in float64; None if it cannot be converted or is already in float64."""
    if x.dtype == torch.float64:
        return None
    try:
        return Network(float64_twin(model, x), x[:1].double())
    except UserError:  # for example a model that converts its input: only float32 is possible
        return None
