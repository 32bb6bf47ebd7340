"""The complete certifier: given enough nodes, every example is certified or broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import CheckError
from bench.core.threat import ThreatModel
from bench.core.time_limit import seconds_left
from certifiers.alpha_crown import AlphaCrown
from certifiers.counterexample_search import CounterexampleSearch
from certifiers.faithfulness import float64_twin
from certifiers.input_regions import region_of
from certifiers.interval_bounds import interval_preactivation_bounds
from certifiers.linear_bounds import BoundedNetwork, intersection
from certifiers.milp_encoding import Encoding, affine_maps
from certifiers.milp_solvers import find_solver
from certifiers.network import Network
from certifiers.network_certifier import NetworkCertifier, check_piecewise_linear

SLACK = 1e-6  # per range of each variable: ten times the feasibility tolerance of the solvers' linear programs
INTEGERS_PER_NODE = 10  # a program with more has far too large a tree, and its first node may take minutes


@registry.certifier("exact")
@dataclass(frozen=True, kw_only=True)
class Exact(NetworkCertifier):
    """Mixed-integer programs decide each example: certified, broken with a witness, or open after `nodes` nodes.

    Tjeng, Xiao and Tedrake, "Evaluating Robustness of Neural Networks with Mixed Integer Programming" (2019), for
    networks of ReLU and its variants (max pooling, clamps, PReLU) with at most some hundreds of unstable neurons, under
    Linf. An example that alpha-crown does not certify is attacked first, with a few gradient steps towards each class
    that is not excluded, from the image and from `batch.worst_points`. Then a program is solved for each of these
    classes, in the order of increasing margins, until one has a solution or all are excluded. Solvers have no time
    limit. Each program takes at least one node, and a program with more than 10 integers per node is skipped. HiGHS
    reports no nodes for an excluded program, which counts as one, and takes many times as long as SCIP.

    A solution is a witness if the model's own forward pass confirms it, at that point or after a few gradient steps;
    else the example stays open. Rounding: a class is excluded if no point has a margin below a positive slack, which
    adds up 1e-6 of the range of each variable (at most 5e-4 in total for the thesis' FC1), in float64; the solvers'
    feasibility tolerance is 1e-7. As with linear bounds, the certificate holds for the network as a function of real
    numbers.

    Deviations: neurons that can only raise the margin need no integers (certifiers/milp_encoding.py), pre-activation
    bounds come from linear bounds instead of programs, and any counterexample is accepted, not only the nearest.
    """

    norms = ("Linf",)
    node_cost: ClassVar[int] = 100  # cost of a node of an integer program, relative to the bounds of one sub-problem

    nodes: int = 1000  # most nodes of branch and bound, for all programs of one example
    solver: Literal["auto", "scip", "highs"] = "auto"  # auto: SCIP if pyscipopt is installed, else HiGHS

    def __post_init__(self) -> None:
        super().__post_init__()
        find_solver(self.solver)

    def check_network(self, network: Network) -> None:
        check_piecewise_linear(network, "exact")

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        self.check_network(self.checked_network(model, batch.x, threat))
        search = CounterexampleSearch(model, batch, threat)
        search.check_starts()
        margins, proven = linear_margins(model, batch, threat, search.unbroken())
        for start in search.starts:
            for other in range(proven.shape[1]):
                rows = search.unbroken()
                rows = rows[~proven[rows, other]]
                search.ascend(start[rows], rows, other, step=1.0)
        undecided = [i for i in search.unbroken().tolist() if not proven[i].all()]
        nodes = torch.zeros_like(batch.y)
        if undecided:
            encoder = Encoder(model, batch, threat)
            for i in undecided:
                nodes[i] = self._decide(i, encoder, margins[i], proven[i], search)
        contradicted = search.broken & proven.gather(1, search.answer[:, None])[:, 0]
        if contradicted.any():
            raise CheckError(f"exact: test example {int(batch.index[contradicted][0])} is both proven and broken")
        certified = proven.all(dim=1) & ~search.broken
        eps = threat.eps_like(batch.x).flatten().to(batch.x.dtype)
        radius = torch.where(certified, eps, 0.0)
        return Certificate(radius, certified, nodes=nodes, broken=search.broken, witness=search.witness)

    def _decide(self, i: int, encoder: Encoder, margins: Tensor, proven: Tensor, search: CounterexampleSearch) -> int:
        """Solve a program for each class that is not `proven` (K,) for example i, in the order of `margins` (K,).

        Returns the nodes that it took.
        """
        taken = 0
        solve, encoding = find_solver(self.solver), encoder.encoding(i)
        for other in margins.argsort().tolist():
            if proven[other] or taken >= self.nodes or seconds_left() == 0:
                continue
            program = encoding.program(int(search.batch.y[i]), other)
            if int(program.integer.sum()) > INTEGERS_PER_NODE * self.nodes:
                continue
            slack = SLACK * float((program.high - program.low).sum())
            answer, nodes = solve(program, slack, self.nodes - taken)
            taken += nodes
            if isinstance(answer, str):
                proven[other] = answer == "none"
                continue
            x = search.batch.x[i : i + 1]
            point = torch.from_numpy(answer[: x.numel()]).to(x).reshape(x.shape)
            search.ascend(point, torch.tensor([i], device=x.device), other, step=0.1)
            if search.broken[i]:
                break
        return taken


def linear_margins(model: nn.Module, batch: Batch, threat: ThreatModel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The margins of alpha-crown and whether they are proven positive, (B,K) each; only `rows` (b,) are computed."""
    margins = torch.full((len(batch), model(batch.x[:1]).shape[1]), -torch.inf, device=batch.x.device)
    proven = torch.zeros_like(margins, dtype=torch.bool)
    if len(rows):
        x, y = batch.x[rows], batch.y[rows]
        margins[rows], _, error = AlphaCrown().bounds_with_error(model, x, y, threat.of(rows))
        proven[rows] = margins[rows] > error[:, None]
    return margins, proven


class Encoder:
    """Encodes the examples of a batch as mixed-integer programs, in float64 on the CPU."""

    def __init__(self, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
        twin, x = float64_twin(model, batch.x).cpu(), batch.x.cpu().double()
        self.network = Network(twin, x[:1])
        self.maps = affine_maps(self.network)
        eps = threat.eps.cpu() if isinstance(threat.eps, Tensor) else threat.eps
        self.region = region_of(x, ThreatModel(threat.norm, eps, threat.box))

    def encoding(self, i: int) -> Encoding:
        region = self.region.of(torch.tensor([i]))
        center, radius = region.interval()
        parallel, adaptive = BoundedNetwork(self.network, "parallel"), BoundedNetwork(self.network, "adaptive")
        bounds = intersection([
            parallel.preactivation_bounds(region), adaptive.preactivation_bounds(region),
            interval_preactivation_bounds(self.network, region),
        ])  # fmt: skip
        return Encoding(self.network, self.maps, (center - radius)[0], (center + radius)[0], bounds)
