"""Solvers of mixed-integer programs: SCIP and HiGHS."""

import importlib.util
from collections.abc import Callable
from typing import Literal

import numpy as np

from bench.core.errors import UserError
from certifiers.milp_encoding import Array, Program

Answer = Array | Literal["none", "unknown"]  # a solution; proven that none exists; not decided in time
Solver = Callable[[Program, float, float], Answer]


def find_solver(name: Literal["auto", "scip", "highs"]) -> Solver:
    """The function solve(program, slack, seconds). auto: SCIP if it is installed, else HiGHS."""
    installed = importlib.util.find_spec("pyscipopt") is not None
    if name == "scip" and not installed:
        raise UserError(
            "solver=scip needs pyscipopt, which is not installed; pip install 'robust-bracket[exact]', "
            "or use solver=highs, which comes with scipy"
        )
    return scip if installed and name != "highs" else highs


def scip(program: Program, slack: float, seconds: float) -> Answer:
    """Without an objective: any solution is accepted, and a branch is pruned if its linear program is infeasible."""
    from pyscipopt import Model, quicksum

    model = Model()
    model.hideOutput()
    model.setParam("limits/time", seconds)
    model.setParam("limits/solutions", 1)
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
    if model.getStatus() == "infeasible":
        return "none"
    best = model.getBestSol()
    return "unknown" if best is None else np.array([best[variable] for variable in variables])


def highs(program: Program, slack: float, seconds: float) -> Answer:
    """The margin is the objective, to guide the search, but the first solution is accepted: any gap is allowed."""
    import scipy.sparse as sp
    from scipy.optimize import Bounds, LinearConstraint, milp

    matrix = sp.vstack([program.matrix, sp.csr_matrix(program.cost)])
    result = milp(
        program.cost,
        constraints=LinearConstraint(matrix, ub=np.append(program.limit, slack - program.constant)),
        bounds=Bounds(program.low, program.high),
        integrality=program.integer,
        options={"time_limit": seconds, "mip_rel_gap": 1e9},
    )
    if result.status == 2:
        return "none"
    return "unknown" if result.x is None else result.x
