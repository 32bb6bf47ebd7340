"""Solvers of mixed-integer programs: SCIP and HiGHS. With one thread and a limit of nodes, both are deterministic."""

import importlib.util
import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from bench.core.extras import import_extra
from bench.core.time_limit import seconds_left
from certifiers.milp_encoding import Array, Program

Answer = Array | Literal["none", "unknown"]  # a solution; proven that none exists; not decided within the nodes
Solver = Callable[[Program, float, int], tuple[Answer, int]]


def find_solver(name: Literal["auto", "scip", "highs"]) -> Solver:
    """The function solve(program, slack, nodes): returns the answer and the number of nodes used, from 1 to `nodes`.
    auto: SCIP if it is installed, else HiGHS.
    """
    if name == "scip":
        import_extra("pyscipopt", "exact", "solver=scip (unlike solver=highs)")
    installed = importlib.util.find_spec("pyscipopt") is not None
    return scip if installed and name != "highs" else highs


def scip(program: Program, slack: float, nodes: int) -> tuple[Answer, int]:
    """Solve without an objective: any solution is accepted; a branch is pruned if its linear program is infeasible."""
    from pyscipopt import Model, quicksum

    model = Model()
    model.hideOutput()
    model.setParam("limits/totalnodes", nodes)  # of all restarts
    if (seconds := seconds_left()) < math.inf:
        model.setParam("limits/time", seconds)
    model.setParam("limits/solutions", 1)
    model.setParam("lp/threads", 1)
    model.setParam("misc/catchctrlc", False)
    model.setParam("presolving/dualsparsify/maxrounds", 0)  # on dense rows it would take most of the time
    sides = zip(program.low.tolist(), program.high.tolist(), program.integer.tolist(), strict=True)
    variables = [model.addVar(lb=low, ub=high, vtype="B" if integer else "C") for low, high, integer in sides]
    matrix = program.matrix
    rows = [slice(start, end) for start, end in zip(matrix.indptr, matrix.indptr[1:], strict=False)]
    terms = [(matrix.indices[row], matrix.data[row]) for row in rows]
    margin = program.cost.nonzero()[0]
    terms.append((margin, program.cost[margin]))
    limits = [*program.limit.tolist(), slack - program.constant]
    for (columns, factors), limit in zip(terms, limits, strict=True):
        pairs = zip(columns.tolist(), factors.tolist(), strict=True)
        model.addCons(quicksum(factor * variables[k] for k, factor in pairs) <= limit)
    model.optimize()
    taken = max(1, model.getNTotalNodes())
    if model.getStatus() == "infeasible":
        return "none", taken
    best = model.getBestSol()
    return "unknown" if best is None else np.array([best[variable] for variable in variables]), taken


def highs(program: Program, slack: float, nodes: int) -> tuple[Answer, int]:
    """Solve with the margin as the objective, to guide the search; the first solution is accepted (any gap is allowed).

    scipy does not say how many nodes a program without a solution took; it counts as one node.
    """
    import scipy.sparse as sp
    from scipy.optimize import Bounds, LinearConstraint, milp

    matrix, seconds = sp.vstack([program.matrix, sp.csr_matrix(program.cost)]), seconds_left()
    result = milp(
        program.cost,
        constraints=LinearConstraint(matrix, ub=np.append(program.limit, slack - program.constant)),
        bounds=Bounds(program.low, program.high),
        integrality=program.integer,
        options={"node_limit": nodes, "mip_rel_gap": 1e9} | ({"time_limit": seconds} if seconds < math.inf else {}),
    )
    taken = max(1, result.mip_node_count or 0)
    if result.status == 2:
        return "none", taken
    return ("unknown", nodes) if result.x is None else (result.x, taken)
