"""exact against the enumeration of all activation patterns, on networks small enough for it."""

import functools
import importlib.util
import itertools
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from bench.core.contracts import Batch
from bench.core.errors import CheckError, UserError
from bench.core.layers import Normalize, Residual
from bench.core.threat import ThreatModel
from bench.core.time_limit import time_limit
from certifiers import exact, milp_solvers
from certifiers.alpha_crown import AlphaCrown
from certifiers.counterexample_search import CounterexampleSearch
from certifiers.exact import Exact

SOLVERS = ["highs", pytest.param("scip", marks=pytest.mark.skipif(
    importlib.util.find_spec("pyscipopt") is None, reason="pyscipopt is not installed"))]  # fmt: skip
THREAT = ThreatModel("Linf", 0.3)


def weighted(model, seed=0):
    """The model in eval mode with random weights, and statistics where it keeps any."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return model.eval().requires_grad_(False)


def mlp(seed, slope=0.0, widths=(2, 3, 2, 3)):
    act = nn.LeakyReLU(slope) if slope else nn.ReLU()
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), act)]
    return weighted(nn.Sequential(nn.Flatten(), *layers[:-1]), seed)


def batch_for(model, shape, n=12, seed=0):
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed))
    x[:2] = x[:2].round()  # corners of the box
    return Batch(x, model(x).argmax(dim=1), torch.arange(n))


def run(certifier, model, batch, threat=THREAT):
    return certifier(model, batch, threat, generator=torch.Generator())


def least_margin(model, x, y, eps=THREAT.eps):
    """min over the box of min_j z_y - z_j: a linear program for each pattern of the ReLUs of an mlp."""
    layers = [part for part in model if isinstance(part, nn.Linear)]
    slope = next((part.negative_slope for part in model if isinstance(part, nn.LeakyReLU)), 0.0)
    box = [(max(v - eps, 0), min(v + eps, 1)) for v in x.double().flatten().tolist()]
    hidden = [layer.out_features for layer in layers[:-1]]
    least = math.inf
    for pattern in itertools.product((0, 1), repeat=sum(hidden)):
        signs = torch.tensor(pattern, dtype=torch.float64).split(hidden)
        w, b = torch.eye(len(box)).double(), torch.zeros(len(box)).double()
        rows, limits = [], []
        for layer, on in zip(layers, [*signs, None], strict=True):
            w, b = layer.weight.double() @ w, layer.weight.double() @ b + layer.bias.double()
            if on is not None:
                rows.append((1 - 2 * on)[:, None] * w)
                limits.append((2 * on - 1) * b)
                factor = slope + (1 - slope) * on
                w, b = factor[:, None] * w, factor * b
        for j in set(range(len(b))) - {int(y)}:
            solution = linprog(w[y] - w[j], A_ub=torch.cat(rows), b_ub=torch.cat(limits), bounds=box)
            if solution.status == 0:
                least = min(least, solution.fun + float(b[y] - b[j]))
    return least


def without_help(monkeypatch):
    """Leave all to the programs: no bound of alpha-crown, and no attack but from what a solver certificate."""
    ascend = CounterexampleSearch.ascend

    def nothing(model, batch, threat, rows):
        margins = torch.zeros((len(batch), model(batch.x[:1]).shape[1]))
        return margins, torch.zeros_like(margins, dtype=torch.bool).scatter(1, batch.y[:, None], True)

    def only_repair(self, points, rows, other, *, step):
        if step < 1:
            ascend(self, points, rows, other, step=step)

    monkeypatch.setattr(exact, "linear_margins", nothing)
    monkeypatch.setattr(CounterexampleSearch, "ascend", only_repair)


@functools.cache
def least_margins(seed, slope):
    model = mlp(seed, slope)
    batch = batch_for(model, (1, 1, 2), n=5)
    return model, batch, [least_margin(model, x, y) for x, y in zip(batch.x, batch.y, strict=True)]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("seed", "slope"), [(0, 0.3), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, 0.0), (1, 0.3)))]
)
def test_agrees_with_all_activation_patterns(solver, seed, slope, monkeypatch):
    without_help(monkeypatch)
    model, batch, margins = least_margins(seed, slope)
    assert all(abs(margin) > 1e-3 for margin in margins)  # far from the slack, on both sides
    assert min(margins) < 0 < max(margins)
    certificate = run(Exact(solver=solver), model, batch)
    assert certificate.status == ["certified" if margin > 0 else "broken" for margin in margins]


def conv_net():
    """All layers that are linear, between ReLUs: on images (1,4,4)."""
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.LeakyReLU(0.1))
    return weighted(
        nn.Sequential(
            Normalize((0.3,), (0.5,)), nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), Residual(body),
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3),
        )
    )  # fmt: skip


def worst_seen(model, x, y, eps, n=2000):
    """The least margin at the corners and inside of the box, at random."""
    draws = torch.rand((2, n, *x.shape), generator=torch.Generator().manual_seed(1))
    points = torch.cat([draws[0].round(), draws[1]])
    logits = model((x + (2 * points - 1) * eps).clamp(0, 1))
    return float((logits[:, [y]] - logits).scatter(1, torch.full((2 * n, 1), int(y)), math.inf).min())


@pytest.mark.parametrize("solver", SOLVERS)
def test_decides_every_layer_and_contradicts_nobody(solver, monkeypatch):
    model, threat = conv_net(), ThreatModel("Linf", torch.linspace(0.01, 0.15, 8))
    batch = batch_for(model, (1, 4, 4), n=8)
    linear = run(AlphaCrown(), model, batch, threat).certified
    without_help(monkeypatch)
    certificate = run(Exact(solver=solver), model, batch, threat)
    assert set(certificate.status) == {"certified", "broken"}
    assert certificate.certified[linear].all()
    assert torch.equal(certificate.radius > 0, certificate.certified)
    for i in certificate.certified.nonzero().flatten().tolist():
        assert certificate.radius[i] == threat.eps[i].float()
        assert worst_seen(model, batch.x[i], batch.y[i], threat.eps[i]) > 0
    assert (model(certificate.witness).argmax(dim=1) != batch.y)[certificate.broken].all()
    assert threat.contains(certificate.witness, batch.x).all()


def test_programs_find_what_the_gradient_does_not():
    """The margin is flat around the image and below zero in a corner of the box."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)).requires_grad_(False).eval()
    for value, given in zip(
        model.state_dict().values(), ([[1.0, 1.0]], [-1.3], [[0.0], [1.0]], [0.05, 0.0]), strict=True
    ):
        value.copy_(torch.tensor(given))
    batch = Batch(torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    search = CounterexampleSearch(model, batch, THREAT)
    search.ascend(batch.x, torch.arange(1), 1, step=1.0)
    assert not search.broken
    certificate = run(Exact(), model, batch)
    assert certificate.status == ["broken"]
    assert certificate.witness.sum() > 1.35
    # at 0.17 the corner has a margin of 0.01 still
    assert run(Exact(), model, batch, ThreatModel("Linf", 0.17)).status == ["certified"]


def test_what_is_wrong_already_needs_no_program(monkeypatch):
    monkeypatch.setattr(exact, "Encoder", None)  # cannot be made
    model, batch, margins = least_margins(0, 0.3)
    fallen = [i for i, margin in enumerate(margins) if margin < 0]
    witness = run(Exact(), model, batch).witness  # the gradient's
    few = Batch(batch.x[fallen], batch.y[fallen], batch.index[fallen])
    monkeypatch.setattr(CounterexampleSearch, "ascend", lambda *_, **__: None)
    assert set(run(Exact(), model, replace(few, worst_points=few.x + 3 * (witness[fallen] - few.x))).status) == {
        "broken"
    }  # projected
    hinted = run(Exact(), model, replace(few, worst_points=witness[fallen]))
    assert set(hinted.status) == {"broken"}
    assert torch.equal(hinted.witness, witness[fallen])
    wrong = Batch(few.x, (few.y + 1) % 3, few.index)
    clean = run(Exact(), model, wrong)
    assert set(clean.status) == {"broken"}
    assert torch.equal(clean.witness, few.x)


def test_no_time_leaves_it_open(monkeypatch):
    """If the user has set a time limit."""
    without_help(monkeypatch)
    model, batch, _ = least_margins(0, 0.3)
    with time_limit(time.perf_counter()):
        certificate = run(Exact(), model, batch)
    assert set(certificate.status) == {"open"}
    assert not certificate.radius.any()
    assert not certificate.nodes.any()


def test_the_nodes_of_an_example_are_shared_by_its_programs(monkeypatch):
    without_help(monkeypatch)
    model, batch, _ = least_margins(0, 0.3)
    given: list[list[int]] = []

    def solve(program, slack, nodes):
        given[-1].append(nodes)
        return "none", 3

    monkeypatch.setattr(exact, "find_solver", lambda _: given.append([]) or solve)
    certificate = run(Exact(nodes=7), model, batch)
    assert given[-1:] == [[7, 4]]  # one for each of two wrong classes
    assert set(certificate.status) == {"certified"}
    assert certificate.nodes.tolist() == [6] * len(batch)
    assert set(run(Exact(nodes=3), model, batch).status) == {"open"}
    assert given[-1] == [3]


def test_a_program_with_far_more_integers_than_nodes_is_not_begun(monkeypatch):
    without_help(monkeypatch)
    model = mlp(0, widths=(8, 40, 20, 2))
    batch = batch_for(model, (1, 2, 4), n=1)
    integers = exact.Encoder(model, batch, THREAT).encoding(0).program(int(batch.y), 1 - int(batch.y)).integer.sum()
    assert 10 < integers < 50
    for nodes, begun in ((1, False), (int(integers + 9) // 10 - 1, False), (int(integers + 9) // 10, True)):
        assert bool(run(Exact(nodes=nodes), model, batch).nodes[0]) == begun


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_takes_no_more_nodes_than_it_has_and_no_clock_decides(solver, monkeypatch):
    model = mlp(0, widths=(16, 40, 30, 2))
    batch = batch_for(model, (1, 4, 4), n=3)
    encoding = exact.Encoder(model, batch, ThreatModel("Linf", 0.4)).encoding(2)
    program = encoding.program(int(batch.y[2]), 1 - int(batch.y[2]))
    solve = milp_solvers.find_solver(solver)
    given = [(-200.0, 3), (-60.0, 3), (-60.0, 2)] if solver == "scip" else [(-200.0, 3), (1e9, 3)]
    usual = [solve(program, *each) for each in given]
    assert [nodes for _, nodes in usual] == ([1, 3, 2] if solver == "scip" else [1, 1])
    hours = itertools.count(step=3600.0)
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: next(hours))
    for (answer, nodes), each in zip(usual, given, strict=True):
        again, nodes_again = solve(program, *each)
        assert nodes == nodes_again
        assert np.array_equal(answer, again)


def test_highs_that_ends_without_an_answer_took_all_its_nodes(monkeypatch):
    model = mlp(0)
    batch = batch_for(model, (1, 1, 2), n=1)
    program = exact.Encoder(model, batch, THREAT).encoding(0).program(int(batch.y[0]), (int(batch.y[0]) + 1) % 3)
    nothing = SimpleNamespace(status=4, x=None, mip_node_count=None)
    monkeypatch.setattr("scipy.optimize.milp", lambda *_, **options: asked.append(options["options"]) or nothing)
    asked = []
    assert milp_solvers.highs(program, 0.0, 17) == ("unknown", 17)
    assert asked[0]["node_limit"] == 17
    assert "time_limit" not in asked[0]


def test_what_no_solver_decides_is_open(monkeypatch):
    without_help(monkeypatch)
    monkeypatch.setattr(exact, "find_solver", lambda _: lambda *_: ("unknown", 1))
    model, batch, _ = least_margins(0, 0.3)
    assert set(run(Exact(), model, batch).status) == {"open"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_say_when_their_time_is_over(solver):
    model = mlp(0, widths=(8, 40, 20, 2))
    batch = batch_for(model, (1, 2, 4), n=1)
    program = exact.Encoder(model, batch, THREAT).encoding(0).program(int(batch.y[0]), 1 - int(batch.y[0]))
    solve = milp_solvers.find_solver(solver)
    assert isinstance(solve(program, 1e9, 1000)[0], np.ndarray)
    assert solve(program, -1e9, 1000)[0] == "none"
    with time_limit(time.perf_counter() + 1e-6):
        assert solve(program, 0.0, 1000)[0] == "unknown"


def test_a_solution_that_the_model_does_not_confirm_is_no_witness(monkeypatch):
    without_help(monkeypatch)
    monkeypatch.setattr(exact, "find_solver", lambda _: lambda program, *_: (program.low, 1))
    model, batch, margins = least_margins(0, 0.3)
    certificate = run(Exact(), model, batch)
    assert certificate.status[0] == "open"
    assert margins[0] > 0
    assert not certificate.certified.any()


def test_a_proof_and_a_witness_at_once_is_an_error(monkeypatch):
    model, batch, _ = least_margins(0, 0.3)
    monkeypatch.setattr(
        exact, "linear_margins", lambda *_: (torch.ones(len(batch), 3), torch.ones(len(batch), 3, dtype=torch.bool))
    )
    with pytest.raises(CheckError, match="both proven and broken"):
        run(Exact(), model, Batch(batch.x, (batch.y + 1) % 3, batch.index))


def test_refuses_what_it_cannot_do(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2)).requires_grad_(False)
    batch = batch_for(model, (1, 1, 2))
    with pytest.raises(UserError, match=r"layer '2' \(Sigmoid\).*piecewise linear"):
        run(Exact(), model, batch)
    with pytest.raises(UserError, match="no L2 form"):
        run(Exact(), mlp(0), batch, ThreatModel("L2", 0.1))
    with pytest.raises(UserError, match="nodes is 0; it must be at least 1"):
        Exact(nodes=0)
    monkeypatch.setattr(milp_solvers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'robust-bracket\[exact\]'"):
        Exact(solver="scip")
    assert milp_solvers.find_solver("auto") is milp_solvers.highs
