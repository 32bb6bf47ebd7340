"""The complete certifier: every example is certified or broken, where it is given the time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts import Batch, Certificate
from bench.core.errors import CheckError, UserError
from bench.core.passes import on_rows
from bench.core.threat import ThreatModel
from certifiers.alpha_crown import AlphaCrown
from certifiers.input_regions import region_of
from certifiers.intervals import interval_limits
from certifiers.linear import Bounder, intersection
from certifiers.milp import Encoding, Program, affine_maps
from certifiers.network import Network, NetworkCertifier, in_float64
from certifiers.solvers import solver_called

SLACK = 1e-6  # of the range of each variable; ten times the tolerance at which solvers call a linear program infeasible
CLEAR = 1e-5  # of the largest logit: a witness is wrong by so much, that it is wrong in any batch and on any machine
STEPS = 20  # of a climb towards one class
SHRINK = 0.75  # of the step size, from step to step


@registry.certifier("exact")
@dataclass(frozen=True, kw_only=True)
class Exact(NetworkCertifier):
    """Mixed-integer programs decide each example: certified, broken with a witness, or open at the time limit.

    Tjeng, Xiao and Tedrake, "Evaluating Robustness of Neural Networks with Mixed Integer Programming" (2019), for
    networks of ReLU and leaky ReLU with at most some hundreds of unstable units, under Linf. What alpha-crown does not
    prove is attacked, with a few gradient steps towards each class that it leaves, from the image and from the hint.
    Then there is one program for each of these classes, that of the least margin first, until one has a solution or
    none has. seconds: the limit for the programs of one example. solver: `auto` is SCIP where pyscipopt is installed,
    else HiGHS, which takes several times as long.

    A solution is a witness once the model's own forward pass confirms it, there or a few gradient steps further; else
    the example stays open. Rounding: a class counts as proven where no point has a margin below a slack above zero, of
    1e-6 for the range of each variable (at most 5e-4 in all for the thesis' FC1), in float64; solvers call a linear
    program infeasible with a tolerance of 1e-7. As with linear bounds, what is certified is the network as a function
    of real numbers.

    Deviations: units that can only raise the margin need no integers (certifiers/milp.py), limits come from linear
    bounds instead of programs of their own, and any counterexample will do, not only the nearest.
    """

    norms = ("Linf",)

    seconds: float = 120.0
    solver: Literal["auto", "scip", "highs"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds <= 0:
            raise UserError(f"exact: seconds is {self.seconds}; it must be positive")
        solver_called(self.solver)

    def check_network(self, network: Network) -> None:
        for k in network.activations:
            if network.activation(k).name != "relu":
                raise UserError(
                    f"layer '{network.nodes[k].name}' ({network.activation(k).name}) cannot be bounded exactly; "
                    "exact is for ReLU and LeakyReLU, alpha-crown for others"
                )

    def certify(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Certificate:
        self.check_network(Network(model, batch.x[:1]))
        search = Search(model, batch, threat)
        starts = [batch.x] if batch.worst_points is None else [batch.x, batch.worst_points]
        for start in starts:
            rows = search.standing()
            search.look(start[rows], rows)
        margins, proven = linear_margins(model, batch, threat, search.standing())
        for start in starts:
            for other in range(proven.shape[1]):
                rows = search.standing()
                rows = rows[~proven[rows, other]]
                search.climb(start[rows], rows, other, step=1.0)
        open_ = [i for i in search.standing().tolist() if not proven[i].all()]
        if open_:
            programs = Programs(model, batch, threat)
            for i in open_:
                self._decide(i, programs, margins[i], proven[i], search)
        contradicted = search.broken & proven.gather(1, search.answer[:, None])[:, 0]
        if contradicted.any():
            raise CheckError(f"exact: test example {int(batch.index[contradicted][0])} is proven and broken")
        certified = proven.all(dim=1) & ~search.broken
        eps = threat.eps_like(batch.x).flatten().to(batch.x.dtype)
        return Certificate(torch.where(certified, eps, 0.0), certified, broken=search.broken, witness=search.witness)

    def _decide(self, i: int, programs: Programs, margins: Tensor, proven: Tensor, search: Search) -> None:
        """Whether example i can be taken for any class that is not `proven` (K,) yet; least of its `margins` first."""
        end = time.monotonic() + self.seconds
        solve, encoding = solver_called(self.solver), programs.around(i)
        for other in margins.argsort().tolist():
            left = end - time.monotonic()
            if proven[other] or left <= 0:
                continue
            program = encoding.program(int(search.batch.y[i]), other)
            answer = solve(program, slack(program), left)
            if isinstance(answer, str):
                proven[other] = answer == "none"
                continue
            x = search.batch.x[i : i + 1]
            point = torch.from_numpy(answer[: x.numel()]).to(x).reshape(x.shape)
            search.climb(point, torch.tensor([i], device=x.device), other, step=0.1)
            if search.broken[i]:
                return


def linear_margins(model: nn.Module, batch: Batch, threat: ThreatModel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The margins of alpha-crown and which of them are a proof, (B,K) each; of some rows (b,) of the batch."""
    margins = torch.full((len(batch), model(batch.x[:1]).shape[1]), -torch.inf, device=batch.x.device)
    proven = torch.zeros_like(margins, dtype=torch.bool)
    if len(rows):
        margins[rows], _, error = AlphaCrown().checked(model, batch.x[rows], batch.y[rows], threat.of(rows))
        proven[rows] = margins[rows] > error[:, None]
    return margins, proven


def slack(program: Program) -> float:
    return SLACK * float((program.high - program.low).sum())


class Programs:
    """The programs of a batch's examples, in float64 on the CPU."""

    def __init__(self, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
        x = batch.x.cpu().double()
        self.network = Network(in_float64(model).cpu(), x[:1])
        self.maps = affine_maps(self.network)
        eps = threat.eps.cpu() if isinstance(threat.eps, Tensor) else threat.eps
        self.region = region_of(x, ThreatModel(threat.norm, eps, threat.box))

    def around(self, i: int) -> Encoding:
        here = self.region.of(torch.tensor([i]))
        center, radius = here.interval()
        limits = [Bounder(self.network, "parallel").limits(here), Bounder(self.network, "adaptive").limits(here)]
        between = intersection([*limits, interval_limits(self.network, here)])
        return Encoding(self.network, self.maps, (center - radius)[0], (center + radius)[0], between)


class Search:
    """What was found of a batch: `broken` (B,), where `witness` (B,C,H,W) is given the class `answer` (B,)."""

    def __init__(self, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
        self.model, self.batch, self.threat = model, batch, threat
        self.broken = torch.zeros_like(batch.y, dtype=torch.bool)
        self.witness, self.answer = batch.x.clone(), batch.y.clone()

    def standing(self) -> Tensor:
        """The examples (b,) that are not broken."""
        return (~self.broken).nonzero().squeeze(1)

    def look(self, points: Tensor, rows: Tensor) -> None:
        """At points (b,C,H,W) for some rows (b,) of the batch."""
        if len(rows) == 0:
            return
        points = self.threat.of(rows).project(points, self.batch.x[rows])
        with on_rows(rows):
            self._see(points, self.model(points), rows)

    def climb(self, points: Tensor, rows: Tensor, other: int, *, step: float) -> None:
        """Signed gradient steps towards one class, of length `step` eps at first; what is broken stops."""
        points = self.threat.of(rows).project(points, self.batch.x[rows])
        for k in range(STEPS):
            if len(rows) == 0:
                return
            x, y, threat = self.batch.x[rows], self.batch.y[rows], self.threat.of(rows)
            points.requires_grad_()
            with on_rows(rows), torch.enable_grad():
                logits = self.model(points)
                lead = logits[:, other] - logits.gather(1, y[:, None])[:, 0]
                (gradient,) = torch.autograd.grad(lead.sum(), points)
            points = points.detach()
            self._see(points, logits.detach(), rows)
            length = (step * SHRINK**k * threat.eps_like(x)).to(x.dtype)
            points = threat.project(points + length * gradient.sign(), x)
            stay = ~self.broken[rows]
            points, rows = points[stay], rows[stay]
        self.look(points, rows)

    def _see(self, points: Tensor, logits: Tensor, rows: Tensor) -> None:
        """Keep the points that are clearly wrong."""
        behind = logits.amax(dim=1) - logits.gather(1, self.batch.y[rows][:, None])[:, 0]
        wrong = behind > CLEAR * logits.abs().amax(dim=1)
        self.broken[rows[wrong]] = True
        self.witness[rows[wrong]] = points[wrong]
        self.answer[rows[wrong]] = logits.argmax(dim=1)[wrong]
